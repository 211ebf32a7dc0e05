package tokens

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
)

// evilAnswers are answers that the client would make room for, and their like.
func evilAnswers() []string {
	return []string{
		"$9223372036854775807\r\n", "$9223372036854775800\r\n", "$99999999999999\r\n", "$999999999\r\nx", "$32770\r\n",
		"*9223372036854775807\r\n", "*1025\r\n", "*-9223372036854775808\r\n", "%9223372036854775807\r\n", "~9\r\n", ">9\r\n", "|9\r\n", "=9\r\n", "!9\r\n",
		strings.Repeat("*1\r\n", maxDepth+1), strings.Repeat("*2\r\n+a\r\n", maxDepth+1), "+" + strings.Repeat("a", maxLine+1),
		"$" + strings.Repeat("0", maxLine+1) + "1\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "$1e9\r\n", "\r\n", "$ 5\r\n",
	}
}

// TestO6_AnswersOfNoMeasure: neither the length that an answer announces nor the
// depth of its lists ends the process, at any command.
func TestO6_AnswersOfNoMeasure(t *testing.T) {
	if _, err := talk(t, "none", ""); err != nil {
		t.Fatalf("want the impostor to pass for a Redis, got %v", err)
	}
	for _, evil := range evilAnswers() {
		for _, command := range []string{"hello", "exists", "getrange", "pttl", "set", "eval"} {
			t.Run(fmt.Sprintf("%.20q to %s", evil, command), func(t *testing.T) {
				if grown, err := talk(t, command, evil); err == nil || grown > 2<<20 {
					t.Errorf("want a small failure, got %v and %d bytes", err, grown)
				}
			})
		}
	}
}

// talk says all that a Fleet says to a server whose answer to one command is
// evil, and returns the memory that took.
func talk(t *testing.T, command, evil string) (grown uint64, err error) {
	t.Helper()
	db := redis.NewClient(&redis.Options{Addr: impostorOf(t, command, evil), Protocol: 2, MaxRetries: -1, Dialer: new(Fleet).dialer(false)})
	defer func() { _ = db.Close() }()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	pipe := db.Pipeline()
	pipe.Exists(t.Context(), "p")
	pipe.GetRange(t.Context(), "p", 0, maxSealed)
	pipe.PTTL(t.Context(), "p")
	pipe.Set(t.Context(), "p", "1", 0)
	pipe.Eval(t.Context(), unlock, []string{"p"}, "1")
	_, err = pipe.Exec(t.Context())
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, err
}

// impostorOf is a server that is one but for its answer to one command.
func impostorOf(t *testing.T, command, evil string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	noErr(t, err)
	t.Cleanup(func() { _ = l.Close() })
	answers := map[string]string{
		"hello": "*2\r\n$5\r\nproto\r\n:2\r\n", "exists": ":0\r\n", "getrange": "$0\r\n\r\n", "pttl": ":-2\r\n", "set": "+OK\r\n", "eval": ":0\r\n", "client": "+OK\r\n",
	}
	answers[command] = evil
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				for b := make([]byte, 4<<10); ; {
					n, err := conn.Read(b)
					if err != nil {
						return
					}
					for line := range strings.SplitSeq(strings.ToLower(string(b[:n])), "\r\n") {
						_, _ = io.WriteString(conn, answers[line])
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestAnswers: what a Redis says passes, however it is cut, and of two answers
// the first does not hide the second.
func TestAnswers(t *testing.T) {
	good := "*4\r\n$6\r\nserver\r\n$5\r\nre\r\ns\r\n$7\r\nmodules\r\n*1\r\n*2\r\n$4\r\nname\r\n*0\r\n" +
		"$-1\r\n*-1\r\n+OK\r\n-ERR no\r\n:-2\r\n$0\r\n\r\n*2\r\n*0\r\n$-1\r\n$3\r\n$99\r\n" + strings.Repeat("*1\r\n+a\r\n", 100) +
		fmt.Sprintf("$%d\r\n%s\r\n", maxSealed+1, strings.Repeat("$", maxSealed+1))
	for _, size := range []int{1, 2, 3, 7, 1 << 20} {
		var a answers
		for part := range slices.Chunk([]byte(good), size) {
			if !a.take(part) {
				t.Fatalf("refused in pieces of %d", size)
			}
		}
		if a.kind != 0 || a.skip != 0 || len(a.open) != 0 {
			t.Errorf("in pieces of %d: want nothing open, got %+v", size, a)
		}
		for _, evil := range evilAnswers() {
			b := a
			if b.take([]byte(evil)) || b.take([]byte("+OK\r\n")) {
				t.Errorf("%.20q passes", evil)
			}
		}
	}
}

// FuzzAnswers: pieces make no difference, and what passes announces nothing
// larger than it may.
func FuzzAnswers(f *testing.F) {
	for _, s := range append(evilAnswers(), "*1\r\n$2\r\nab\r\n", "$-1\r\n") {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var whole, parts answers
		ok := whole.take(b)
		for i := range b {
			parts.take(b[i : i+1])
		}
		if parts.broken == ok || whole.skip > maxSealed+3 || ok && len(whole.open) > maxDepth {
			t.Errorf("whole %+v, in pieces %+v", whole, parts)
		}
		if ok && bytes.ContainsAny(b[:min(1, len(b))], "%~>|=!(,#_") {
			t.Error("want RESP2 only")
		}
	})
}

// TestFleet_DeadConnectionsAreSeen: a server that closes an idle connection costs
// the next use nothing, as without the wire in between.
func TestFleet_DeadConnectionsAreSeen(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	f := &Fleet{}
	db := redis.NewClient(&redis.Options{Addr: r.Addr, Protocol: 2, MaxRetries: -1, Dialer: f.dialer(false)})
	defer func() { _ = db.Close() }()
	noErr(t, db.Ping(t.Context()).Err())
	other := raw(t, r)
	noErr(t, other.ClientKillByFilter(t.Context(), "TYPE", "normal", "SKIPME", "yes").Err())
	noErr(t, db.Ping(t.Context()).Err())
}
