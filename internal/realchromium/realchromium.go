// Package realchromium looks at pages with the real Chromium in tests.
//
//	b := realchromium.Start(t)
//	tab := b.Open(t, "http://127.0.0.1:9441/")
//	realchromium.Eval[string](t, tab, "document.title")
//
// A page that complains on its console, breaks its Content-Security-Policy or
// throws fails the test.
package realchromium

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
)

// ErrNotFound is returned by Find when there is no Chromium on this machine.
var ErrNotFound = errors.New("no Chromium found: set $CHROMIUM to the program, or run tools/install chromium")

// Find returns the path of a Chromium: $CHROMIUM, else the one at
// .cache/chromium/bin/chromium beside go.mod.
func Find() (string, error) {
	return cached.Part{Env: "CHROMIUM", Dir: "chromium", Program: "chromium", Missing: ErrNotFound}.Find()
}

// Limit bounds what one step may take.
const Limit = 30 * time.Second

// Browser is a running Chromium.
type Browser struct {
	ctx context.Context
	axe string
}

// Start runs Chromium until the test ends. Without one it skips the test, and
// fails it where CI is set.
func Start(t *testing.T) *Browser {
	t.Helper()
	program := cached.Require(t, "Chromium", Find, ErrNotFound)
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		// The sandbox wants rights that a container has not. It shows only pages of ours.
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("headless", "shell"), chromedp.Flag("no-zygote", true), chromedp.Flag("disable-software-rasterizer", true),
		chromedp.Flag("font-render-hinting", "none"), chromedp.Flag("hide-scrollbars", false), chromedp.UserDataDir(t.TempDir()))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewContext(ctx)
	t.Cleanup(stop)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting Chromium: %v", err)
	}
	return &Browser{ctx: ctx, axe: filepath.Join(filepath.Dir(filepath.Dir(program)), "axe.min.js")}
}

// Look is how a page is looked at.
type Look struct {
	// Width and Height are of the window; 0 means 1280 by 800.
	Width, Height int
	// Dark prefers dark colours, NoScript runs none.
	Dark, NoScript bool
	// Lenient lets the page's policy pass what a test injects, and does not judge its console.
	Lenient bool
}

// Tab is an open page.
type Tab struct {
	ctx context.Context
	axe string

	mu         sync.Mutex
	complaints []string
}

// Open opens a page and waits until it is loaded.
func (b *Browser) Open(t *testing.T, url string, look Look) *Tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	tab := &Tab{ctx: ctx, axe: b.axe}
	t.Cleanup(func() {
		if all := tab.Complaints(); len(all) > 0 && !look.Lenient {
			t.Errorf("the page complains: %s", strings.Join(all, "\n"))
		}
		cancel()
	})
	if look.Width == 0 {
		look.Width, look.Height = 1280, 800
	}
	if err := chromedp.Listen(ctx, tab.listen); err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	scheme := "light"
	if look.Dark {
		scheme = "dark"
	}
	err := errors.Join(
		call(ctx, func(ctx context.Context) error {
			_, err := chromedp.Call(ctx, cdplog.Enable, cdp.Empty{})
			return err
		}),
		call(ctx, func(ctx context.Context) error {
			_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return err
		}),
		call(ctx, func(ctx context.Context) error {
			_, err := chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: look.NoScript})
			return err
		}),
		call(ctx, func(ctx context.Context) error {
			_, err := chromedp.Call(ctx, page.SetBypassCSP, page.SetBypassCSPParams{Enabled: look.Lenient})
			return err
		}),
		call(ctx, func(ctx context.Context) error {
			return chromedp.Do(ctx, chromedp.EmulateViewport(int64(look.Width), int64(look.Height)), chromedp.Navigate(url))
		}),
	)
	if err != nil {
		t.Fatalf("opening %s: %v", url, err)
	}
	return tab
}

func call(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	return do(ctx)
}

func (tab *Tab) listen(ev any) {
	var text string
	switch e := ev.(type) {
	case *runtime.EventExceptionThrown:
		text = fmt.Sprintf("exception: %+v", e.ExceptionDetails)
	case *runtime.EventConsoleAPICalled:
		text = fmt.Sprintf("console.%s", e.Type)
		for _, arg := range e.Args {
			text += " " + string(arg.Value) + arg.Description
		}
	case *cdplog.EventEntryAdded:
		text = fmt.Sprintf("%s %s: %s %s", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL)
	default:
		return
	}
	tab.mu.Lock()
	defer tab.mu.Unlock()
	tab.complaints = append(tab.complaints, text)
}

// Complaints are what the page said on its console until now: errors, exceptions,
// violations of its policy, requests that failed.
func (tab *Tab) Complaints() []string {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	return append([]string(nil), tab.complaints...)
}

// Forgive forgets the complaints until now, which the test has judged.
func (tab *Tab) Forgive() {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	tab.complaints = nil
}

// Eval returns the value of an expression, or of the promise that it is. It works
// without the page's scripts too.
func Eval[T any](t *testing.T, tab *Tab, expression string) T {
	t.Helper()
	var value T
	err := call(tab.ctx, func(ctx context.Context) error {
		raw, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](expression, chromedp.EvalAwaitPromise))
		if err != nil {
			return err
		}
		return json.Unmarshal(raw, &value)
	})
	if err != nil {
		t.Fatalf("evaluating %.200s: %v", expression, err)
	}
	return value
}

// Until waits for an expression to be true.
func (tab *Tab) Until(t *testing.T, expression string) {
	t.Helper()
	const pause = 50 * time.Millisecond
	for range Limit / pause {
		if Eval[bool](t, tab, "!!("+expression+")") {
			return
		}
		time.Sleep(pause)
	}
	t.Fatalf("never true: %s", expression)
}

// Press sends keys, such as "\t".
func (tab *Tab) Press(t *testing.T, keys string) {
	t.Helper()
	if err := call(tab.ctx, func(ctx context.Context) error { return chromedp.Do(ctx, chromedp.KeyEvent(keys)) }); err != nil {
		t.Fatalf("pressing %q: %v", keys, err)
	}
}

// Picture writes what the page shows as a PNG; whole takes what is below the
// window too.
func (tab *Tab) Picture(t *testing.T, path string, whole bool) {
	t.Helper()
	err := call(tab.ctx, func(ctx context.Context) error {
		shot := chromedp.CaptureScreenshot()
		if whole {
			shot = chromedp.FullScreenshot(100)
		}
		b, err := chromedp.Run(ctx, shot)
		if err != nil {
			return err
		}
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil {
		t.Fatalf("taking a picture: %v", err)
	}
}

// Axe returns what axe-core finds, serious and critical, one line each. The tab
// must be Lenient.
func (tab *Tab) Axe(t *testing.T) []string {
	t.Helper()
	code, err := os.ReadFile(tab.axe)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("no axe.min.js beside this Chromium; unset CHROMIUM and run tools/install chromium")
	}
	if err != nil {
		t.Fatal(err)
	}
	Eval[bool](t, tab, string(code)+"; true")
	return Eval[[]string](t, tab, `axe.run().then(r => r.violations.filter(v => v.impact === 'serious' || v.impact === 'critical')
		.flatMap(v => v.nodes.map(n => v.id + ' (' + v.impact + '): ' + n.html + ' ' + n.failureSummary)))`)
}
