package admin

import (
	"bytes"
	"embed"
	"html/template"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/refusals"
)

//go:embed web
var web embed.FS

// fresh is how long a View serves everybody who looks: many open pages cost no
// more than one.
const fresh = 500 * time.Millisecond

// page serves what a person looks at.
type page struct {
	view      func() *View
	now       func() time.Time
	templates map[string]*template.Template

	mu   sync.Mutex
	last *snapshot
	made time.Time
}

func newPage(view func() *View, now func() time.Time) *page {
	p := &page{view: view, now: now, templates: map[string]*template.Template{}}
	for _, name := range []string{"overview.html", "upstream.html", "sorry.html"} {
		p.templates[name] = template.Must(template.New(name).Funcs(words()).ParseFS(web, "web/layout.html", "web/"+name))
	}
	return p
}

// routes adds the page to mux.
func (p *page) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", p.overview)
	mux.HandleFunc("GET /upstreams/{name}", p.upstream)
	for file, kind := range map[string]string{
		"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
	} {
		mux.HandleFunc("GET /assets/"+file, func(w http.ResponseWriter, _ *http.Request) {
			b, err := web.ReadFile("web/" + file)
			if err != nil {
				say(w, http.StatusInternalServerError, "the file cannot be read")
				return
			}
			w.Header().Set("Content-Type", kind)
			_, _ = w.Write(b)
		})
	}
}

// snap returns the newest View, made anew when the last one is too old. Those who
// come while it is made wait for it.
func (p *page) snap() *snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil || p.now().Sub(p.made) >= fresh {
		p.last = newSnapshot(p.view())
		p.made = p.now()
	}
	return p.last
}

func (p *page) overview(w http.ResponseWriter, r *http.Request) {
	p.show(w, http.StatusOK, "overview.html", p.snap().overview(readQuery(r.URL.Query())))
}

// one is what upstream.html shows.
type one struct {
	*snapshot
	row
	Alerts   []Alert
	Refusals []refusals.Refusal
}

func (p *page) upstream(w http.ResponseWriter, r *http.Request) {
	s := p.snap()
	name := r.PathValue("name")
	for _, u := range s.rows {
		if u.Name != name {
			continue
		}
		o := &one{snapshot: s, row: u}
		for _, a := range s.Alerts {
			if a.Upstream == name {
				o.Alerts = append(o.Alerts, a)
			}
		}
		for _, f := range s.Refusals {
			if f.Upstream == name {
				o.Refusals = append(o.Refusals, f)
			}
		}
		p.show(w, http.StatusOK, "upstream.html", o)
		return
	}
	p.show(w, http.StatusNotFound, "sorry.html", &sorry{s})
}

// sorry is the page for an upstream that is not there. It repeats nothing of the address.
type sorry struct{ *snapshot }

// show renders into memory first, so that half a page never goes out.
func (p *page) show(w http.ResponseWriter, status int, name string, data any) {
	var b bytes.Buffer
	if err := p.templates[name].ExecuteTemplate(&b, "layout", data); err != nil {
		say(w, http.StatusInternalServerError, "the page cannot be shown; /status has the same as JSON")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// known reports whether a Host header is one that this listener may be called by:
// an IP address, localhost, or the host of its own address. Any other name is one
// that somebody else could have pointed here (DNS rebinding), to read the page
// through a browser of ours.
func known(host, own string) bool {
	name := hostOnly(host)
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || name != "" && name == strings.ToLower(hostOnly(own))
}

// hostOnly takes port and brackets off.
func hostOnly(s string) string {
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.Contains(s[i:], "]") && (strings.HasPrefix(s, "[") || strings.Count(s, ":") == 1) {
		s = s[:i]
	}
	return strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
}
