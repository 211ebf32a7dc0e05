package admin

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/refusals"
)

const (
	// pageSize is how many upstreams a page lists.
	pageSize = 50
	// maxQuery bounds what is searched for, in bytes.
	maxQuery = 128
	// shownRefusals are in sight at once; the others are behind a click.
	shownRefusals = 12
)

// row is an upstream and how well it is.
type row struct {
	*Upstream
	State State
	Why   []string
}

// snapshot is a View, judged and sorted with the worst first.
type snapshot struct {
	*View
	rows   []row
	counts [OK + 1]int
}

func newSnapshot(v *View) *snapshot {
	s := &snapshot{View: v, rows: make([]row, 0, len(v.Upstreams))}
	alerts := map[string][]Alert{}
	for _, a := range v.Alerts {
		alerts[a.Upstream] = append(alerts[a.Upstream], a)
	}
	for i := range v.Upstreams {
		u := &v.Upstreams[i]
		state, why := u.judge(alerts[u.Name])
		s.rows = append(s.rows, row{u, state, why})
		s.counts[state]++
	}
	slices.SortFunc(s.rows, func(a, b row) int {
		return cmp.Or(cmp.Compare(a.State, b.State), cmp.Compare(b.failed(), a.failed()), cmp.Compare(a.Name, b.Name))
	})
	return s
}

func (r *row) calls() uint64 {
	if r.Traffic == nil {
		return 0
	}
	return r.Traffic.Calls
}

func (r *row) failed() float64 {
	if r.calls() == 0 {
		return 0
	}
	return float64(r.Traffic.Failed) / float64(r.Traffic.Calls)
}

func (r *row) p99() time.Duration {
	if r.Traffic == nil {
		return 0
	}
	return r.Traffic.P99
}

// query is what the address asks to see. Whatever it holds, it selects among
// upstreams: nothing of it is a file, a name of code, or markup.
type query struct {
	Text, State, Sort string
	Page              int
}

func readQuery(v url.Values) query {
	q := query{Text: strings.TrimSpace(refusals.Plain(v.Get("q"), maxQuery)), Page: 1}
	for s := Bad; s <= OK; s++ {
		if v.Get("state") == s.String() {
			q.State = s.String()
		}
	}
	for _, o := range orders() {
		if v.Get("sort") == o.Key {
			q.Sort = o.Key
		}
	}
	if n, err := strconv.Atoi(v.Get("page")); err == nil && n > 0 {
		q.Page = n
	}
	return q
}

// link is the address of the same list with one thing changed.
func (q query) link(key, value string) string {
	v := url.Values{}
	set := func(k, s string) {
		if k == key {
			s = value
		}
		if s != "" {
			v.Set(k, s)
		}
	}
	set("q", q.Text)
	set("state", q.State)
	set("sort", q.Sort)
	set("page", "")
	if len(v) == 0 {
		return "/#upstreams"
	}
	return "/?" + v.Encode() + "#upstreams"
}

// order is a way to sort the list.
type order struct {
	Key, Name string
	less      func(a, b row) int
}

func orders() []order {
	return []order{
		{"name", "name", func(a, b row) int { return cmp.Compare(a.Name, b.Name) }},
		{"calls", "most calls", func(a, b row) int { return cmp.Compare(b.calls(), a.calls()) }},
		{"failed", "most failures", func(a, b row) int { return cmp.Compare(b.failed(), a.failed()) }},
		{"p99", "slowest", func(a, b row) int { return cmp.Compare(b.p99(), a.p99()) }},
		{"expiry", "token that ends first", func(a, b row) int { return a.expiry().Compare(b.expiry()) }},
	}
}

// expiry is far away for an upstream without a token of its own.
func (r *row) expiry() time.Time {
	if r.Token == nil || r.Token.Expiry.IsZero() {
		return time.Unix(1<<40, 0)
	}
	return r.Token.Expiry
}

// overview is what overview.html shows.
type overview struct {
	*snapshot
	Query     query
	Rows      []row
	Matching  int
	From, To  int
	Prev      string
	Next      string
	States    []choice
	Sorts     []choice
	Attention []trouble
	Shown     []refusals.Refusal
	Older     []refusals.Refusal
	Calls     uint64
	Failed    uint64
	Window    time.Duration
}

// choice is one entry of a list to choose from.
type choice struct {
	Value, Name string
	Chosen      bool
	Link        string
}

// trouble is one thing that wants a look.
type trouble struct {
	State          State
	What, Text, Do string
	Link           string
	Since          time.Time
}

func (s *snapshot) overview(q query) *overview {
	o := &overview{snapshot: s, Query: q, Shown: s.Refusals}
	if len(o.Shown) > shownRefusals {
		o.Shown, o.Older = o.Shown[:shownRefusals], o.Shown[shownRefusals:]
	}
	for _, r := range s.rows {
		if t := r.Traffic; t != nil {
			o.Calls, o.Failed, o.Window = o.Calls+t.Calls, o.Failed+t.Failed, t.Window
		}
	}
	found := s.find(q)
	o.Matching = len(found)
	pages := max(1, (len(found)+pageSize-1)/pageSize)
	o.Query.Page = min(q.Page, pages)
	from := (o.Query.Page - 1) * pageSize
	o.Rows = found[from:min(from+pageSize, len(found))]
	o.From, o.To = from+1, from+len(o.Rows)
	if o.Query.Page > 1 {
		o.Prev = q.link("page", strconv.Itoa(o.Query.Page-1))
	}
	if o.Query.Page < pages {
		o.Next = q.link("page", strconv.Itoa(o.Query.Page+1))
	}
	o.choices()
	o.attention()
	return o
}

// find returns the rows that are asked for, in the order that is asked for.
func (s *snapshot) find(q query) []row {
	found := s.rows
	if q.Text != "" || q.State != "" {
		found = nil
		text := strings.ToLower(q.Text)
		for _, r := range s.rows {
			if (q.State == "" || r.State.String() == q.State) && (strings.Contains(strings.ToLower(r.Name), text) || strings.Contains(strings.ToLower(r.URL), text)) {
				found = append(found, r)
			}
		}
	}
	for _, o := range orders() {
		if o.Key == q.Sort {
			found = slices.Clone(found)
			slices.SortStableFunc(found, o.less)
		}
	}
	return found
}

func (o *overview) choices() {
	o.States = []choice{{Name: fmt.Sprintf("All %s", thousands(len(o.rows))), Chosen: o.Query.State == "", Link: o.Query.link("state", "")}}
	for s := Bad; s <= OK; s++ {
		if n := o.counts[s]; n > 0 || o.Query.State == s.String() {
			o.States = append(o.States, choice{
				Value: s.String(), Name: fmt.Sprintf("%s %s", s.Word(), thousands(n)),
				Chosen: o.Query.State == s.String(), Link: o.Query.link("state", s.String()),
			})
		}
	}
	o.Sorts = []choice{{Name: "trouble first", Chosen: o.Query.Sort == ""}}
	for _, by := range orders() {
		o.Sorts = append(o.Sorts, choice{Value: by.Key, Name: by.Name, Chosen: o.Query.Sort == by.Key})
	}
}

// attention gathers what wants a look, worst first.
func (o *overview) attention() {
	add := func(t trouble) { o.Attention = append(o.Attention, t) }
	if o.NotReady != "" {
		add(trouble{State: Bad, What: "Not ready", Text: o.NotReady, Do: "Until then /readyz answers 503, and nothing should be routed here."})
	}
	if o.Policy.Error != "" {
		add(trouble{
			State: Bad, What: "The policy file could not be put in force", Text: o.Policy.Error, Link: "#policy",
			Do: "The policy loaded before stays in force. Mend the file and try it with: envoy-mcp-auth check -c " + o.Policy.File,
		})
	}
	if n := o.counts[Bad]; n > 0 {
		first := o.rows[0]
		add(trouble{State: Bad, What: count(n, "upstream is", "upstreams are") + " failing", Text: first.Name + ": " + first.Why[0], Link: o.Query.link("state", Bad.String())})
	}
	for _, a := range o.Alerts {
		what := a.Rule
		if about := orElse(a.Upstream, a.Caller); about != "" {
			what += " · " + about
		}
		t := trouble{State: Warn, What: what, Text: a.Text, Do: a.Response, Since: a.Since}
		if a.Upstream != "" {
			t.Link = "/upstreams/" + url.PathEscape(a.Upstream)
		}
		add(t)
	}
	for _, p := range o.Parts {
		if p.Trouble != "" {
			add(trouble{State: p.State, What: p.Name, Text: p.Trouble, Do: p.Do, Link: "#" + p.ID})
		}
	}
	slices.SortStableFunc(o.Attention, func(a, b trouble) int { return cmp.Compare(a.State, b.State) })
}

// Worst is the state of the whole.
func (o *overview) Worst() State {
	worst := OK
	for _, t := range o.Attention {
		worst = min(worst, t.State)
	}
	for s := range Starting { // one that starts is no trouble yet
		if o.counts[s] > 0 {
			worst = min(worst, s)
		}
	}
	return worst
}

// Summary says in one sentence how things are, for the reader's first look and
// for those who are read to.
func (o *overview) Summary() string {
	var parts []string
	if n := o.counts[Bad]; n > 0 {
		parts = append(parts, count(n, "upstream", "upstreams")+" failing")
	}
	if n := o.counts[Warn]; n > 0 {
		what := thousands(n)
		if len(parts) == 0 {
			what = count(n, "upstream", "upstreams")
		}
		parts = append(parts, what+" degraded")
	}
	other := 0
	for _, t := range o.Attention {
		if t.Link == "" || strings.HasPrefix(t.Link, "#") {
			other++
		}
	}
	if other > 0 {
		parts = append(parts, count(other, "other thing wants", "other things want")+" a look")
	}
	if len(parts) > 0 {
		return strings.Join(parts, ", ")
	}
	return "All is well"
}
