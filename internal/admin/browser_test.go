package admin

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realchromium"
)

// shown serves a View, which the test may exchange.
type shown struct {
	view atomic.Pointer[View]
	url  string
	http *httptest.Server
}

func serve(t *testing.T, v *View) *shown {
	t.Helper()
	s := &shown{}
	s.view.Store(v)
	s.http = httptest.NewServer(New(Config{
		Ready: func() error { return nil }, Status: func() any { return "" }, Metrics: prometheus.NewRegistry(),
		View: func() *View { return s.view.Load() }, Now: time.Now,
	}))
	t.Cleanup(s.http.Close)
	s.url = s.http.URL
	return s
}

// contrast returns each text whose colour is too close to what is behind it
// (WCAG 2.2, 1.4.3): want 4.5, or 3 for large text.
const contrast = `(() => {
  const parse = c => { const m = c.match(/[\d.]+/g).map(Number); return {r: m[0], g: m[1], b: m[2], a: m.length > 3 ? m[3] : 1}; };
  const lum = c => { const f = v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }; return .2126 * f(c.r) + .7152 * f(c.g) + .0722 * f(c.b); };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.a === 1) return c; if (c.a !== 0) throw new Error('half seen through'); } return {r: 255, g: 255, b: 255}; };
  const bad = []; let seen = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const n = walk.currentNode, e = n.parentElement;
    if (!n.data.trim() || !e.checkVisibility() || e.closest('.sr, title, noscript, svg, option')) continue;
    seen++;
    const style = getComputedStyle(e), a = lum(parse(style.color)), b = lum(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const size = parseFloat(style.fontSize), want = size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5;
    if (ratio < want) bad.push(ratio.toFixed(2) + ' ' + n.data.trim().slice(0, 40));
  }
  if (seen < 40) bad.push('only ' + seen + ' texts seen');
  return bad;
})()`

// overflow names what sticks out to the right of the window.
const overflow = `(() => {
  const wide = document.documentElement.clientWidth, out = [];
  if (document.documentElement.scrollWidth > wide) out.push('the page: ' + document.documentElement.scrollWidth + ' of ' + wide);
  for (const e of document.querySelectorAll('body *')) {
    const r = e.getBoundingClientRect();
    if (r.width && r.right > wide + 1 && !e.closest('.sr, thead, symbol')) out.push(e.nodeName + '.' + e.className + ' ' + r.right);
  }
  return out.slice(0, 10);
})()`

// covered names the cells whose label is drawn over their text: at phone width a
// label stands in the cell's left padding.
const covered = `[...document.querySelectorAll('td[data-label]')].filter(e => {
  const label = getComputedStyle(e, '::before');
  return label.content !== 'none' && label.position === 'absolute' && parseFloat(getComputedStyle(e).paddingLeft) < parseFloat(label.width);
}).map(e => e.dataset.label).slice(0, 10)`

// TestPageInChromium looks at the page as people do. SCREENSHOTS=DIR keeps the pictures.
func TestPageInChromium(t *testing.T) {
	b := realchromium.Start(t)
	good, bad := serve(t, calm()), serve(t, troubled())
	for _, tc := range []struct {
		name, url string
		look      realchromium.Look
	}{
		{"calm-light", good.url + "/", realchromium.Look{}},
		{"calm-dark", good.url + "/", realchromium.Look{Dark: true}},
		{"trouble-light", bad.url + "/", realchromium.Look{}},
		{"trouble-dark", bad.url + "/", realchromium.Look{Dark: true}},
		{"upstream-light", bad.url + "/upstreams/crm", realchromium.Look{}},
		{"upstream-dark", bad.url + "/upstreams/crm", realchromium.Look{Dark: true}},
		{"phone-light", bad.url + "/", realchromium.Look{Width: 360, Height: 740}},
		{"phone-dark", bad.url + "/upstreams/crm", realchromium.Look{Width: 360, Height: 740, Dark: true}},
		{"tablet-light", bad.url + "/", realchromium.Look{Width: 834, Height: 1100}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tab := b.Open(t, tc.url, tc.look)
			realchromium.Eval[bool](t, tab, `document.querySelectorAll('details').forEach(d => d.open = true), true`)
			if got := realchromium.Eval[[]string](t, tab, contrast); len(got) > 0 {
				t.Errorf("too little contrast: %q", got)
			}
			if got := realchromium.Eval[[]string](t, tab, overflow); len(got) > 0 {
				t.Errorf("wider than the window: %q", got)
			}
			if got := realchromium.Eval[[]string](t, tab, covered); len(got) > 0 {
				t.Errorf("labels over the text of their cells: %q", got)
			}
			if dir := os.Getenv("SCREENSHOTS"); dir != "" {
				realchromium.Eval[bool](t, tab, `document.querySelectorAll('details').forEach(d => d.open = false), true`)
				tab.Picture(t, filepath.Join(dir, tc.name+".png"), false)
				tab.Picture(t, filepath.Join(dir, tc.name+"-whole.png"), true)
			}
			look := tc.look
			look.Lenient = true
			if got := b.Open(t, tc.url, look).Axe(t); len(got) > 0 {
				t.Errorf("axe: %s", strings.Join(got, "\n"))
			}
		})
	}
}

// TestL3_MarkupOfCallersIsText: what callers chose is shown letter by letter.
func TestL3_MarkupOfCallersIsText(t *testing.T) {
	b := realchromium.Start(t)
	s := serve(t, troubled())
	for _, path := range []string{"/", "/upstreams/mail", "/?q=" + strings.ReplaceAll(markup, " ", "+"), "/upstreams/%3Cscript%3Ealert(1)%3C%2Fscript%3E"} {
		tab := b.Open(t, s.url+path, realchromium.Look{})
		if n := realchromium.Eval[int](t, tab, `document.querySelectorAll('img, main script, [onerror]').length`); n != 0 {
			t.Errorf("%s: %d elements of the caller's", path, n)
		}
		if strings.HasPrefix(path, "/upstreams/%3C") {
			tab.Forgive() // a 404 is told on the console
			continue
		}
		if !realchromium.Eval[bool](t, tab, `(document.body.innerText + document.getElementById('q')?.value).includes('<img src=x onerror=alert(1)>')`) {
			t.Errorf("%s: the text is not shown", path)
		}
	}
}

func TestPageIsLive(t *testing.T) {
	b := realchromium.Start(t)
	s := serve(t, calm())
	tab := b.Open(t, s.url+"/", realchromium.Look{})
	tab.Until(t, `document.querySelector('.live button')?.textContent === 'Pause updates'`)
	realchromium.Eval[bool](t, tab, `(window.same = document.getElementById('u-crm'), q.focus(), q.value = 'typed', scrollTo(0, 120), true)`)
	v := troubled()
	v.Refusals[0].Tool = "seen_without_reload"
	s.view.Store(v)
	tab.Until(t, `document.body.innerText.includes('seen_without_reload')`)
	for _, kept := range []string{
		`window.same === document.getElementById('u-crm')`, `document.activeElement === q`, `q.value === 'typed'`, `scrollY >= 120`,
		`document.title.includes('failing')`, `document.getElementById('said').textContent.includes('failing')`,
		`document.querySelector('.upstreams tbody tr').id === 'u-crm'`, // trouble first
	} {
		if !realchromium.Eval[bool](t, tab, kept) {
			t.Errorf("after an update: not %s", kept)
		}
	}
	// What is folded open stays, and nothing comes while updates are held.
	realchromium.Eval[bool](t, tab, `(older.open = true, document.querySelector('.live button').click(), true)`)
	next := troubled()
	next.Refusals[0].Tool = "held_back"
	next.At = next.At.Add(time.Minute)
	s.view.Store(next)
	time.Sleep(2500 * time.Millisecond) // longer than the pause between looks
	if realchromium.Eval[bool](t, tab, `document.body.innerText.includes('held_back')`) {
		t.Error("updated while held")
	}
	realchromium.Eval[bool](t, tab, `(document.querySelector('.live button').click(), true)`)
	tab.Until(t, `document.body.innerText.includes('held_back')`)
	if !realchromium.Eval[bool](t, tab, `older.open`) {
		t.Error("the older refusals were folded up by an update")
	}
	// A page that the server would give now is the same as what the updates made.
	if got := realchromium.Eval[string](t, tab, `fetch('/').then(r => r.text()).then(text => {
		const strip = m => { m.querySelectorAll('details').forEach(d => d.removeAttribute('open')); return m.innerHTML; };
		const want = strip(new DOMParser().parseFromString(text, 'text/html').getElementById('main')), got = strip(document.getElementById('main').cloneNode(true));
		if (want === got) return '';
		let i = 0; while (want[i] === got[i]) i++;
		return 'want ' + want.slice(i - 80, i + 80) + ' got ' + got.slice(i - 80, i + 80);
	})`); got != "" {
		t.Error(got)
	}
	if all := tab.Complaints(); len(all) > 0 {
		t.Errorf("the page complains: %q", all)
	}
	s.http.Close()
	tab.Until(t, `!gone.hidden && gone.textContent.includes('cannot be reached')`)
	tab.Forgive() // failed requests are told on the console
}

func TestPageWithoutJavaScript(t *testing.T) {
	b := realchromium.Start(t)
	s := serve(t, troubled())
	tab := b.Open(t, s.url+"/?q=cr&state=bad&sort=name", realchromium.Look{NoScript: true})
	for _, want := range []string{
		`document.querySelectorAll('.upstreams tbody tr').length === 1`, `q.value === 'cr'`, `sort.value === 'name'`,
		`document.querySelector('noscript a').checkVisibility()`, `!document.querySelector('.live button')`,
		`document.body.innerText.includes('invalid_client')`, `document.querySelectorAll('.refusals').length === 2`,
	} {
		if !realchromium.Eval[bool](t, tab, want) {
			t.Errorf("not %s", want)
		}
	}
	realchromium.Eval[bool](t, tab, `(document.querySelector('.filter button').click(), true)`)
	tab.Until(t, `location.search.includes('sort=name') && document.readyState === 'complete'`)
}

func TestPageByKeyboard(t *testing.T) {
	b := realchromium.Start(t)
	s := serve(t, troubled())
	tab := b.Open(t, s.url+"/", realchromium.Look{})
	tab.Until(t, `!!document.querySelector('.live button')`)
	var order []string
	for range 17 {
		tab.Press(t, "\t")
		order = append(order, realchromium.Eval[string](t, tab, `(e => (e.id || e.textContent.trim().slice(0, 24)) + (getComputedStyle(e).outlineStyle === 'none' ? ' without a ring' : ''))(document.activeElement)`))
	}
	got := strings.Join(order, " | ")
	want := "Skip to the content | envoy-mcp-auth | Pause updates | The policy file could no"
	if !strings.HasPrefix(got, want) || strings.Contains(got, "without a ring") || !strings.Contains(got, "q | sort | Show | crm") {
		t.Errorf("Tab goes %s", got)
	}
	tab = b.Open(t, s.url+"/", realchromium.Look{})
	tab.Press(t, "\t")
	tab.Press(t, "\r")
	if got := realchromium.Eval[string](t, tab, `document.activeElement.id`); got != "main" {
		t.Errorf("the skip link goes to %q", got)
	}
}
