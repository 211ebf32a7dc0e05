package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// provider answers as an LLM provider does: the chat API of its kind, files and a
// list of models, for whoever shows its key.
type provider struct {
	kind, key string

	mu     sync.Mutex
	status int // of every answer, if not zero
	files  int
	gate   chan struct{} // if there is one, a stream waits for it after its first word
}

// fail has it answer with this status from now on. Zero heals it.
func (p *provider) fail(status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = status
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	shown := r.Header.Get("X-Api-Key")
	if p.kind == "openai" {
		shown = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	switch {
	case shown != p.key:
		p.refuse(w, http.StatusUnauthorized)
	case p.status != 0:
		p.refuse(w, p.status)
	case r.Method == http.MethodGet && r.URL.Path == "/v1/models":
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"model-1"}]}`)
	case r.Method == http.MethodPost && r.URL.Path == "/v1/files":
		p.files++
		_, _ = fmt.Fprintf(w, `{"id":"file-%d","object":"file"}`, p.files)
	case r.Method == http.MethodDelete && strings.HasPrefix(r.URL.Path, "/v1/files/"):
		_, _ = io.WriteString(w, `{"id":"file-1","deleted":true}`)
	case r.Method == http.MethodPost && r.URL.Path == "/v1/chat/completions" && p.kind == "openai",
		r.Method == http.MethodPost && r.URL.Path == "/v1/messages" && p.kind == "anthropic":
		p.chat(w, r)
	default:
		http.NotFound(w, r)
	}
}

// refuse answers as both do, but for the words.
func (p *provider) refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"type":"error","error":{"type":"made_up","code":"made_up","message":"%s answers %d"}}`, p.kind, status)
}

func (p *provider) chat(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Model  string `json:"model"`
		Stream bool   `json:"stream"`
	}
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	whole, pieces := openaiWords(asked.Model)
	if p.kind == "anthropic" {
		whole, pieces = anthropicWords(asked.Model)
	}
	if !asked.Stream {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, whole)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for _, piece := range pieces {
		_, _ = io.WriteString(w, piece+"\n\n")
		_ = http.NewResponseController(w).Flush()
		if p.gate != nil && strings.Contains(piece, `"made"`) {
			select {
			case <-p.gate:
			case <-r.Context().Done():
			}
		}
	}
}

func openaiWords(model string) (whole string, pieces []string) {
	chunk := func(delta, finish string) string {
		return fmt.Sprintf(`data: {"id":"c-1","object":"chat.completion.chunk","created":1,"model":%q,"choices":[{"index":0,"delta":%s,"finish_reason":%s}]}`, model, delta, finish)
	}
	whole = fmt.Sprintf(`{"id":"c-1","object":"chat.completion","created":1,"model":%q,"choices":[{"index":0,"finish_reason":"stop",`+
		`"message":{"role":"assistant","content":"made up"}}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`, model)
	return whole, []string{
		chunk(`{"role":"assistant","content":"made"}`, "null"), chunk(`{"content":" up"}`, "null"), chunk(`{}`, `"stop"`), "data: [DONE]",
	}
}

func anthropicWords(model string) (whole string, pieces []string) {
	event := func(name, rest string) string {
		return fmt.Sprintf("event: %s\ndata: {\"type\":%q%s}", name, name, rest)
	}
	message := func(content, stop string) string {
		return fmt.Sprintf(`{"id":"c-1","type":"message","role":"assistant","model":%q,"content":%s,"stop_reason":%s,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":2}}`, model, content, stop)
	}
	return message(`[{"type":"text","text":"made up"}]`, `"end_turn"`), []string{
		event("message_start", `,"message":`+message("[]", "null")),
		event("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`),
		event("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":"made"}`),
		event("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":" up"}`),
		event("content_block_stop", `,"index":0`),
		event("message_delta", `,"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":2}`),
		event("message_stop", ""),
	}
}

// told says of a request what matters, in words that are the same for every kind.
func (p *provider) told(a arrival) string {
	path := strings.NewReplacer("/v1/chat/completions", "CHAT", "/v1/messages", "CHAT").Replace(a.Target)
	out := a.Method + " " + path
	for name, value := range map[string]string{"openai": "Bearer " + p.key, "anthropic": p.key} {
		header := map[string]string{"openai": "authorization", "anthropic": "x-api-key"}[name]
		switch got := a.lines(header); {
		case name == p.kind && slices.Equal(got, []string{value}):
			out += " its key"
		case len(got) > 0:
			out += " " + header
		}
	}
	for _, header := range []string{"api-key", "cookie", "x-mcp-auth-key", "x-litellm-api-key"} {
		if len(a.lines(header)) > 0 {
			out += " " + header
		}
	}
	return out
}
