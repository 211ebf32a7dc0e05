package policy

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func (e CookieEdit) label() string {
	return [...]string{"remove", "keep", "set", "refuse"}[e]
}

func allowing(names ...string) CookiesSpec { return CookiesSpec{Allow: names} }

// lines turns strings into the values Filter takes.
func lines(values ...string) [][]byte {
	var out [][]byte
	for _, v := range values {
		out = append(out, []byte(v))
	}
	return out
}

type cookieCase struct {
	title         string
	spec          CookiesSpec
	in            []string
	edit          CookieEdit
	value         string
	kept, dropped int
}

func (c *cookieCase) run(t *testing.T) {
	t.Helper()
	rule := NewCookieRule(c.spec)
	got := rule.Filter(nil, lines(c.in...))
	if got.Edit != c.edit {
		t.Errorf("edit: want %s, got %s (%q)", c.edit.label(), got.Edit.label(), got.Value)
	}
	if string(got.Value) != c.value {
		t.Errorf("value: want %q, got %q", c.value, got.Value)
	}
	if got.Kept != c.kept || got.Dropped != c.dropped {
		t.Errorf("counts: want %d kept and %d dropped, got %d and %d", c.kept, c.dropped, got.Kept, got.Dropped)
	}
}

func runCookieCases(t *testing.T, cases []cookieCase) {
	t.Helper()
	for i := range cases {
		t.Run(cases[i].title, cases[i].run)
	}
}

// Joining and splitting: C1, C2, C6, C7.
func TestC1toC7_CookieLines(t *testing.T) {
	a, ab := allowing("a"), allowing("a", "b")
	runCookieCases(t, []cookieCase{
		{"C1 two fields become one", ab, []string{"a=1", "b=2"}, CookieSet, "a=1; b=2", 2, 0},
		{"C1 joined and separate crumbs", ab, []string{"a=1; x=9", "y=8; b=2"}, CookieSet, "a=1; b=2", 2, 2},
		{"C1 a comma never joins", ab, []string{"a=1,b=2"}, CookieKeep, "a=1,b=2", 1, 0},
		{"C1 90 fields", a, append(slices.Repeat([]string{"t=1"}, 89), "a=1"), CookieSet, "a=1", 1, 89},
		{"C2 a quote does not guard a semicolon", a, []string{`a="x; y"`}, CookieSet, `a="x`, 1, 1},
		{"C2 nor does it for an allowed name inside", ab, []string{`x="1; a=2"`}, CookieSet, `a=2"`, 1, 1},
		{"C2 split without a blank", ab, []string{"a=1;b=2"}, CookieSet, "a=1; b=2", 2, 0},
		{"C6 no equals sign", a, []string{"a; a=1; noeq"}, CookieSet, "a=1", 1, 2},
		{"C6 no name", a, []string{"=v; a=1; =a=2"}, CookieSet, "a=1", 1, 2},
		{"C6 no name, even if the policy had one", allowing("a", ""), []string{"=v; a=1; =a=2"}, CookieSet, "a=1", 1, 2},
		{"C6 blank name", a, []string{" =v; a=1; \t=w"}, CookieSet, "a=1", 1, 2},
		{"C6 empty pieces are no pairs", a, []string{";; a=1 ; ;"}, CookieSet, "a=1", 1, 0},
		{"C6 no trailing semicolon", a, []string{"a=1;"}, CookieSet, "a=1", 1, 0},
		{"C7 nothing left", a, []string{"b=1; c=2"}, CookieRemove, "", 0, 2},
		{"C7 an empty field", a, []string{""}, CookieRemove, "", 0, 0},
		{"C7 only separators", a, []string{" ; ;\t; "}, CookieRemove, "", 0, 0},
		{"C7 no field seen", a, nil, CookieRemove, "", 0, 0},
		{"C7 no name allowed", CookiesSpec{}, []string{"a=1"}, CookieRemove, "", 0, 1},
		{"C7 nothing dropped and one field", ab, []string{"b=2; a=1"}, CookieKeep, "b=2; a=1", 2, 0},
		{"C7 one pair", a, []string{"a=1"}, CookieKeep, "a=1", 1, 0},
		{"C7 one field and an empty one", a, []string{"a=1", ""}, CookieSet, "a=1", 1, 0},
		{"C7 odd separators are not nothing", ab, []string{"a=1;  b=2"}, CookieSet, "a=1; b=2", 2, 0},
		{"C7 leading blank", a, []string{" a=1"}, CookieSet, "a=1", 1, 0},
	})
}

// Names and values: C3, C4, C8, C9.
func TestC3toC9_CookieBytes(t *testing.T) {
	a := allowing("a")
	long := "a=" + strings.Repeat("v", 58<<10)
	runCookieCases(t, []cookieCase{
		{"C3 case matters", a, []string{"A=1; a=2; a =3"}, CookieSet, "a=2; a =3", 2, 1},
		{"C3 spaces and tabs are trimmed", a, []string{"\t a=1 \t"}, CookieSet, "a=1", 1, 0},
		{"C3 Unicode blanks are not", a, []string{"\u00a0a=1; a\u2000=2; \u2003a=3; \x85a=4"}, CookieRemove, "", 0, 4},
		{"C3 no percent-decoding", a, []string{"%61=1; a%20=2"}, CookieRemove, "", 0, 2},
		{"C3 no normal forms", allowing("cafe"), []string{"cafe\u0301=1; caf\u00e9=2"}, CookieRemove, "", 0, 2},
		{"C3 no prefix match", a, []string{"aa=1; a.b=2; a[0]=3"}, CookieRemove, "", 0, 3},
		{"C3 quotes belong to the name", a, []string{`"a"=1; 'a'=2`}, CookieRemove, "", 0, 2},
		{"C4 quotes", a, []string{`a="q"; x=1`}, CookieSet, `a="q"`, 1, 1},
		{"C4 percent", a, []string{"a=%3B%20b%3D; x=1"}, CookieSet, "a=%3B%20b%3D", 1, 1},
		{"C4 equals signs", a, []string{"a==b==; x=1"}, CookieSet, "a==b==", 1, 1},
		{"C4 commas and backslashes", a, []string{`a=b\c,d; x=1`}, CookieSet, `a=b\c,d`, 1, 1},
		{"C4 inner blanks", a, []string{"a = 1  2\t3 ; x=1"}, CookieSet, "a = 1  2\t3", 1, 1},
		{"C4 JSON", a, []string{`a={"k":[1,2]}; x=1`}, CookieSet, `a={"k":[1,2]}`, 1, 1},
		{"C4 UTF-8", a, []string{"a=春节; x=1"}, CookieSet, "a=春节", 1, 1},
		{"C4 Latin-1", a, []string{"a=\xe9\xff; x=1"}, CookieSet, "a=\xe9\xff", 1, 1},
		{"C4 empty value", a, []string{"a=; x=1"}, CookieSet, "a=", 1, 1},
		{"C4 58 kB", a, []string{"x=1", long}, CookieSet, long, 1, 1},
		{"C8 NUL", a, []string{"a=1\x00; a=2"}, CookieSet, "a=2", 1, 1},
		{"C8 CR and LF", a, []string{"a=1\r\nx: y; a=2"}, CookieSet, "a=2", 1, 1},
		{"C8 DEL", a, []string{"a=\x7f; a=2"}, CookieSet, "a=2", 1, 1},
		{"C8 unit separator", a, []string{"a=\x1f; a=2"}, CookieSet, "a=2", 1, 1},
		{"C8 at the edge, where only blanks are cut", a, []string{"a=1\x0b; a=2"}, CookieSet, "a=2", 1, 1},
		{"C8 a tab is not one of them", a, []string{"a=1\t2"}, CookieKeep, "a=1\t2", 1, 0},
		{"C9 exact prefix", allowing("__Host-s"), []string{"__host-s=1; __Host-s=2; __HOST-s=3"}, CookieSet, "__Host-s=2", 1, 2},
		{"C9 secure impostor", allowing("__Secure-x"), []string{"__SeCuRe-x=1; __Secure-x=2"}, CookieSet, "__Secure-x=2", 1, 1},
		{"C9 hidden behind U+2000", allowing("__Host-s"), []string{"\u2000__Host-s=1"}, CookieRemove, "", 0, 1},
		{"C9 no prefix is implied", allowing("s"), []string{"__Host-s=1; __Host-=s=2"}, CookieRemove, "", 0, 2},
	})
}

// Duplicates, parser switches and the strict option: C5, C10.
func TestC5andC10_CookieOptions(t *testing.T) {
	first, refuse := allowing("a", "b"), allowing("a", "b")
	first.Duplicates, refuse.Duplicates = "first", "refuse"
	unknown := allowing("a")
	unknown.Duplicates = "last"
	strict := allowing("a")
	strict.Strict = true
	runCookieCases(t, []cookieCase{
		{"C5 all instances in order", allowing("a"), []string{"a=2; a=1; a=2"}, CookieKeep, "a=2; a=1; a=2", 3, 0},
		{"C5 keep, spelled out", CookiesSpec{Allow: []string{"a"}, Duplicates: "keep"}, []string{"a=1; a=2"}, CookieKeep, "a=1; a=2", 2, 0},
		{"C5 first", first, []string{"a=1; b=2; a=3", "b=4"}, CookieSet, "a=1; b=2", 2, 2},
		{"C5 first is the first that is well formed", first, []string{"a=\x01; a=2; a=3"}, CookieSet, "a=2", 1, 2},
		{"C5 refuse", refuse, []string{"a=1; b=2; a=3"}, CookieRefuse, "", 0, 0},
		{"C5 refuse across fields", refuse, []string{"a=1", "a=1"}, CookieRefuse, "", 0, 0},
		{"C5 refuse ignores what is dropped anyway", refuse, []string{"a=1; x=1; x=2"}, CookieSet, "a=1", 1, 2},
		{"C5 an unknown word refuses", unknown, []string{"a=1; a=2"}, CookieRefuse, "", 0, 0},
		{"C10 parser switches", allowing("a"), []string{"$Version=1; a=1; $Path=/; $Domain=x; $Port=1"}, CookieSet, "a=1", 1, 4},
		{"C10 unless allowed by name", allowing("a", "$Version"), []string{"$Version=1; a=1; $Path=/"}, CookieSet, "$Version=1; a=1", 2, 1},
		{"C10 strict keeps octets and quotes", strict, []string{`a=!#$%&'()*+-./:<=>?@[]^_{|}~; a="q"; a=`}, CookieKeep, `a=!#$%&'()*+-./:<=>?@[]^_{|}~; a="q"; a=`, 3, 0},
		{"C10 strict drops a comma", strict, []string{"a=1, secret=2; a=3"}, CookieSet, "a=3", 1, 1},
		{"C10 strict drops half a quote", strict, []string{`a="x; a=y"; a="; a="p"q"`}, CookieRemove, "", 0, 4},
		{"C10 strict drops blanks", strict, []string{"a = 1; a=1 2; a=1\t2; a =3"}, CookieSet, "a =3", 1, 3},
		{"C10 strict drops bytes above ASCII and backslashes", strict, []string{"a=\xe9; a=春; a=b\\c"}, CookieRemove, "", 0, 3},
	})
}

// What net/http drops or rewrites arrives as it was sent.
func TestC13_CookiesThatNetHTTPMangles(t *testing.T) {
	for _, pair := range []string{
		`x={"k":1}`, `x="zz`, `x=a\b`, "x=1,c=d", "x = 1", "x=春节", "x=\x80", "x=a b",
	} {
		rule := NewCookieRule(allowing("x"))
		if got := rule.Filter(nil, lines(pair+"; t=1")); string(got.Value) != pair {
			t.Errorf("want %q unchanged, got %q", pair, got.Value)
		}
	}
	many := strings.Repeat("t=1; ", 3500) + "x=1"
	rule := NewCookieRule(allowing("x"))
	if got := rule.Filter(nil, lines(many)); string(got.Value) != "x=1" || got.Dropped != 3500 {
		t.Errorf("3501 pairs: want x=1 and 3500 dropped, got %q and %d", got.Value, got.Dropped)
	}
}

func TestCookieRuleZeroValueLetsNothingOn(t *testing.T) {
	var rule CookieRule
	if got := rule.Filter(nil, lines("a=1; =; b")); got.Edit != CookieRemove || got.Kept != 0 {
		t.Errorf("want remove and nothing kept, got %s and %d", got.Edit.label(), got.Kept)
	}
}

// More names than fit on the stack.
func TestC5_DuplicatesAmongManyNames(t *testing.T) {
	for _, names := range []int{1, 63, 64, 65, 256, 257, 1000} {
		spec := CookiesSpec{Duplicates: "first"}
		var want []string
		for i := range names {
			spec.Allow = append(spec.Allow, fmt.Sprintf("n%d", i))
			want = append(want, fmt.Sprintf("n%d=1", i))
		}
		rule := NewCookieRule(spec)
		once := strings.Join(want, "; ")
		got := rule.Filter(nil, lines(once, once))
		if string(got.Value) != once || got.Dropped != names {
			t.Errorf("%d names: want each once, got %d kept and %d dropped", names, got.Kept, got.Dropped)
		}
	}
}

func TestCookieFilterAppendsToBuffer(t *testing.T) {
	rule := NewCookieRule(allowing("a"))
	buf := append(make([]byte, 0, 64), "before"...)
	got := rule.Filter(buf, lines("x=1; a=1"))
	if string(got.Value) != "a=1" || &buf[:7][6] != &got.Value[0] {
		t.Errorf("want a=1 right behind what buf held, got %q", got.Value)
	}
}

func TestC12_CookieFilterDoesNotAllocate(t *testing.T) {
	for _, duplicates := range []string{"keep", "first", "refuse"} {
		rule := NewCookieRule(CookiesSpec{Allow: []string{"session_id", "user"}, Duplicates: duplicates, Strict: true})
		in := lines("session_id=abc; tracking=zzz; user=u", "other=1")
		buf := make([]byte, 0, 256)
		if n := testing.AllocsPerRun(100, func() { rule.Filter(buf[:0], in) }); n != 0 {
			t.Errorf("duplicates %s: want 0 allocations, got %v", duplicates, n)
		}
	}
}

// A quadratic filter would take 64 times as long for 8 times the input.
func TestC12_CookieFilterIsLinear(t *testing.T) {
	rule := NewCookieRule(CookiesSpec{Allow: []string{"a"}, Duplicates: "first", Strict: true})
	for _, piece := range []string{";", "=", " ", "\t;", "a=1; ", "x=1;", `a="`, "a=1,a=", "; a", "a =\x01"} {
		cost := func(size int) time.Duration {
			in := [][]byte{bytes.Repeat([]byte(piece), size/len(piece))}
			buf := make([]byte, 0, size)
			best := time.Hour
			for range 7 {
				start := time.Now()
				rule.Filter(buf, in)
				best = min(best, time.Since(start))
			}
			return best
		}
		// A busy machine slows down some rounds; what is quadratic is slow in all.
		var small, large time.Duration
		for range 20 {
			if small, large = cost(58<<10), cost(8*58<<10); large <= 32*small+time.Millisecond {
				break
			}
		}
		if large > 32*small+time.Millisecond {
			t.Errorf("%q repeated: 58 kB took %v, 8 times that %v", piece, small, large)
		}
	}
}

// naiveCookies is a second reading of the rules, as plain as can be.
type naiveCookies struct{ control, grammar *regexp.Regexp }

func newNaiveCookies() *naiveCookies {
	octets := `[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*`
	return &naiveCookies{
		control: regexp.MustCompile(`[\x00-\x08\x0a-\x1f\x7f]`),
		grammar: regexp.MustCompile(`^(` + octets + `|"` + octets + `")$`),
	}
}

func (n *naiveCookies) filter(spec CookiesSpec, in []string) (edit CookieEdit, value string, kept, dropped int) {
	var out []string
	came := map[string]bool{}
	for piece := range strings.SplitSeq(strings.Join(in, "; "), ";") {
		pair := strings.Trim(piece, " \t")
		if pair == "" {
			continue
		}
		name, val, hasValue := strings.Cut(pair, "=")
		name = strings.TrimRight(name, " \t")
		good := hasValue && name != "" && slices.Contains(spec.Allow, name) && !n.control.MatchString(pair)
		if spec.Strict && !n.grammar.MatchString(val) {
			good = false
		}
		if good && came[name] && spec.Duplicates == "refuse" {
			return CookieRefuse, "", 0, 0
		}
		if good && came[name] && spec.Duplicates == "first" {
			good = false
		}
		if !good {
			dropped++
			continue
		}
		came[name] = true
		out = append(out, pair)
	}
	value = strings.Join(out, "; ")
	switch {
	case len(out) == 0:
		return CookieRemove, "", 0, dropped
	case len(in) == 1 && in[0] == value:
		return CookieKeep, value, len(out), dropped
	}
	return CookieSet, value, len(out), dropped
}

// check holds C12 for one input.
func (n *naiveCookies) check(t *testing.T, spec CookiesSpec, in []string) {
	t.Helper()
	rule := NewCookieRule(spec)
	got := rule.Filter(nil, lines(in...))
	edit, value, kept, dropped := n.filter(spec, in)
	if got.Edit != edit || string(got.Value) != value || got.Kept != kept || got.Dropped != dropped {
		t.Fatalf("%+v of %q: the second parser says %s %q (%d, %d), got %s %q (%d, %d)", spec, in,
			edit.label(), value, kept, dropped, got.Edit.label(), got.Value, got.Kept, got.Dropped)
	}
	if edit == CookieRefuse || kept == 0 {
		return
	}
	if again := rule.Filter(nil, lines(value)); again.Edit != CookieKeep || string(again.Value) != value {
		t.Fatalf("not idempotent: %q became %s %q", value, again.Edit.label(), again.Value)
	}
	crumbs := strings.Split(strings.Join(in, "; "), ";")
	if split := rule.Filter(nil, lines(crumbs...)); string(split.Value) != value {
		t.Fatalf("crumbs %q gave %q, joined they gave %q", crumbs, split.Value, value)
	}
	rest := strings.Join(in, ";")
	for pair := range strings.SplitSeq(value, "; ") {
		name, _, _ := strings.Cut(pair, "=")
		if !slices.Contains(spec.Allow, strings.TrimRight(name, " \t")) {
			t.Fatalf("%q is not allowed by %q", pair, spec.Allow)
		}
		_, after, found := strings.Cut(rest, pair)
		if !found {
			t.Fatalf("%q is not in the input, or not in this order: %q", pair, in)
		}
		rest = after
	}
}

func TestC12_CookieProperties(t *testing.T) {
	naive := newNaiveCookies()
	pieces := []string{
		"a=1", "b=2", "A=1", "a", "=a", "=a=1", "", " ", "\t", "a =1", " a= 1 ", `a="x`, `y"`,
		"a=\x00", "a=\xff", "a=1,b=2", "$Version=1", "\u2000a=1", "a==", "b=",
	}
	specs := []CookiesSpec{
		{},
		allowing("a"), allowing("a", "b"),
		{Allow: []string{"a", "b"}, Duplicates: "first"},
		{Allow: []string{"a", "b"}, Duplicates: "refuse"},
		{Allow: []string{"a", "b"}, Strict: true},
	}
	for _, spec := range specs {
		for _, x := range pieces {
			for _, y := range pieces {
				for _, separator := range []string{"; ", ";", " ;\t"} {
					naive.check(t, spec, []string{x + separator + y})
				}
				naive.check(t, spec, []string{x, y})
				naive.check(t, spec, []string{x + ";" + y, y + "; " + x})
			}
		}
	}
}

func FuzzCookieFilter(f *testing.F) {
	f.Add("a=1; b=2\nc=3", "a,c", uint8(0))
	f.Add(`a="x; y"; __host-s=1`, "__Host-s,a", uint8(1))
	f.Add("a=1;a=2;a=3", "a", uint8(2))
	f.Add("a = 1,b; a=\x01;\ta=\xff", "a", uint8(4))
	naive := newNaiveCookies()
	f.Fuzz(func(t *testing.T, in, allow string, mode uint8) {
		spec := CookiesSpec{
			Allow:      strings.Split(allow, ","),
			Duplicates: []string{"keep", "first", "refuse", ""}[mode%4],
			Strict:     mode&4 != 0,
		}
		// The file half admits tokens only, so that no name has blanks or
		// separators in it.
		for _, name := range spec.Allow {
			if name == "" || strings.ContainsAny(name, " \t;=") || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				return
			}
		}
		naive.check(t, spec, strings.Split(in, "\n"))
	})
}

func BenchmarkCookieFilter(b *testing.B) {
	rule := NewCookieRule(allowing("session_id", "user_context"))
	for _, c := range []struct {
		name string
		in   [][]byte
	}{
		{"two", lines("session_id=abc; tracking=zzz")},
		{"3000", lines(strings.Repeat("tracking=abcdefghi; ", 2999) + "session_id=abc")},
	} {
		b.Run(c.name, func(b *testing.B) {
			buf := make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				rule.Filter(buf, c.in)
			}
		})
	}
}
