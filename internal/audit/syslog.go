package audit

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Severities (RFC 3164 §4.1.1).
const (
	severityWarning = 4
	severityInfo    = 6
)

// syslogPatience is how long a connection, and the writing of a line, may take: a
// server whose window stays full would hold what waits for ever. log/syslog has no
// such limit.
const syslogPatience = 10 * time.Second

// syslogServer sends lines to a syslog server. Connections are made, and made anew,
// by what is sent.
type syslogServer struct {
	spec policy.AuditSyslog
	now  func() time.Time
	conn net.Conn
}

// facility returns the number of a facility's name (RFC 3164 §4.1.1).
func facility(name string) int {
	return map[string]int{
		"user": 1, "daemon": 3, "auth": 4, "authpriv": 10,
		"local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23,
	}[name]
}

// send implements sender. A line that fails is sent once more over a new connection:
// servers end idle ones.
func (s *syslogServer) send(ctx context.Context, lines [][]byte) (int, error) {
	for i, line := range lines {
		idle := s.conn != nil
		err := s.write(ctx, line)
		if err != nil && idle {
			err = s.write(ctx, line)
		}
		if err != nil {
			return i, err
		}
	}
	return len(lines), nil
}

// write connects if need be and sends one line. After an error there is no connection.
func (s *syslogServer) write(ctx context.Context, line []byte) error {
	if s.conn == nil {
		conn, err := s.dial(ctx)
		if err != nil {
			return err
		}
		s.conn = conn
	}
	conn := s.conn
	ctx, cancel := context.WithTimeout(ctx, syslogPatience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Unix(1, 0)) }) // any time that is over
	defer stop()
	_, err := conn.Write(s.message(line))
	if err != nil {
		s.close()
	}
	return err
}

// message is a line as RFC 3164 §4 has it, with the time of RFC 3339 for a server of
// another host. One of this host knows which host it is.
func (s *syslogServer) message(line []byte) []byte {
	priority := facility(s.spec.Facility)<<3 | severityInfo
	if refuses(line) {
		priority = facility(s.spec.Facility)<<3 | severityWarning
	}
	from := s.now().Format(time.Stamp)
	if !strings.HasPrefix(s.conn.RemoteAddr().Network(), "unix") {
		host, err := os.Hostname()
		if err != nil {
			host = s.conn.LocalAddr().String()
		}
		from = s.now().Format(time.RFC3339) + " " + host
	}
	return fmt.Appendf(nil, "<%d>%s %s[%d]: %s\n", priority, from, s.spec.Tag, os.Getpid(), bytes.TrimSuffix(line, []byte{'\n'}))
}

// dial connects. A socket of this host takes datagrams, or else a stream.
func (s *syslogServer) dial(ctx context.Context) (net.Conn, error) {
	u, err := url.Parse(s.spec.Address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: syslogPatience}
	if u.Scheme != "unix" {
		return d.DialContext(ctx, u.Scheme, u.Host)
	}
	conn, err := d.DialContext(ctx, "unixgram", u.Path)
	if err != nil {
		conn, err = d.DialContext(ctx, "unix", u.Path)
	}
	return conn, err
}

func (s *syslogServer) close() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}
