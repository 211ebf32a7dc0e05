package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// stale is how old a message may be: an older one may be a recording of somebody's.
const stale = 5 * time.Minute

func newAlerts(log *lines, env func(string) (string, bool)) *cobra.Command {
	var listen, secretEnv string
	cmd := &cobra.Command{
		Use:     "alerts",
		Short:   "A receiver of signed alerts, which prints them",
		Example: "  MCP_ALERT_SECRET=$(openssl rand -base64 32) demo-servers alerts --listen 127.0.0.1:9003",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			secret, ok := env(secretEnv)
			if !ok || secret == "" {
				return fmt.Errorf("%s is not set: put the key of the signatures there", secretEnv)
			}
			return serve(cmd.Context(), log, "alerts", listen, "/alerts", func(string) (http.Handler, error) {
				return &receiver{key: []byte(secret), log: log, now: time.Now}, nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:9003", "address to listen on")
	f.StringVar(&secretEnv, "secret-env", "MCP_ALERT_SECRET", "environment variable with the key of the signatures")
	return cmd
}

// receiver takes alerts that are signed by Standard Webhooks, and prints each.
type receiver struct {
	key []byte
	log *lines
	now func() time.Time
}

func (h *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil || !h.signed(r.Header, body) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	var message struct {
		Data struct {
			Alerts []struct{ Status, Rule, Upstream, Stage, Summary string }
		}
	}
	if err := json.Unmarshal(body, &message); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	for _, a := range message.Data.Alerts {
		h.log.printf("alerts: %s %s: %s", a.Status, strings.Join(strings.Fields(a.Rule+" "+a.Upstream+" "+a.Stage), " "), a.Summary)
	}
	w.WriteHeader(http.StatusNoContent)
}

// signed checks who a message is from, and that it is new.
func (h *receiver) signed(header http.Header, body []byte) bool {
	at := header.Get("Webhook-Timestamp")
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil || h.now().Sub(time.Unix(seconds, 0)).Abs() > stale {
		return false
	}
	mac := hmac.New(sha256.New, h.key)
	mac.Write([]byte(header.Get("Webhook-Id") + "." + at + "."))
	mac.Write(body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for got := range strings.FieldsSeq(header.Get("Webhook-Signature")) {
		if hmac.Equal([]byte(got), []byte(want)) {
			return true
		}
	}
	return false
}
