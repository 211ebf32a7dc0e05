package audit

import (
	"bytes"
	"context"
	"log/syslog"
	"net/url"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// syslogServer sends lines to a syslog server. Connections are made, and made anew,
// by what is sent.
type syslogServer struct {
	spec policy.AuditSyslog
	to   *syslog.Writer
}

// facility returns the number of a facility's name (RFC 3164 §4.1.1).
func facility(name string) syslog.Priority {
	return map[string]syslog.Priority{
		"auth": syslog.LOG_AUTH, "authpriv": syslog.LOG_AUTHPRIV, "daemon": syslog.LOG_DAEMON, "user": syslog.LOG_USER,
		"local0": syslog.LOG_LOCAL0, "local1": syslog.LOG_LOCAL1, "local2": syslog.LOG_LOCAL2, "local3": syslog.LOG_LOCAL3,
		"local4": syslog.LOG_LOCAL4, "local5": syslog.LOG_LOCAL5, "local6": syslog.LOG_LOCAL6, "local7": syslog.LOG_LOCAL7,
	}[name]
}

// dial connects. A socket of this host takes datagrams, or else a stream.
func (s *syslogServer) dial() (*syslog.Writer, error) {
	u, err := url.Parse(s.spec.Address)
	if err != nil {
		return nil, err
	}
	priority := facility(s.spec.Facility) | syslog.LOG_INFO
	if u.Scheme != "unix" {
		return syslog.Dial(u.Scheme, u.Host, priority, s.spec.Tag)
	}
	w, err := syslog.Dial("unixgram", u.Path, priority, s.spec.Tag)
	if err != nil {
		w, err = syslog.Dial("unix", u.Path, priority, s.spec.Tag)
	}
	return w, err
}

// send implements sender. The writer connects anew by itself, once for each line.
func (s *syslogServer) send(_ context.Context, lines [][]byte) (int, error) {
	if s.to == nil {
		w, err := s.dial()
		if err != nil {
			return 0, err
		}
		s.to = w
	}
	for i, line := range lines {
		text, write := string(bytes.TrimSuffix(line, []byte{'\n'})), s.to.Info
		if refuses(line) {
			write = s.to.Warning
		}
		if err := write(text); err != nil {
			s.close()
			return i, err
		}
	}
	return len(lines), nil
}

func (s *syslogServer) close() {
	if s.to != nil {
		_ = s.to.Close()
		s.to = nil
	}
}
