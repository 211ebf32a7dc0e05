package policy

// AuditSpec is the `audit` block: where a record of every decision and every outcome goes, as JSON lines in a hash chain. At least one of `file`, `stdout`, `syslog` and `otlp`. See docs/audit.md.
type AuditSpec struct {
	// File is the path of the file. It is made with mode 0600; one that is there keeps its mode.
	File string `yaml:"file"`
	// Stdout writes the lines to standard output. The server's own log goes to standard error.
	Stdout bool `yaml:"stdout"`
	// Syslog sends the lines to a syslog server.
	Syslog *AuditSyslogSpec `yaml:"syslog"`
	// OTLP sends the lines as log records to an OpenTelemetry collector.
	OTLP *OTLPSpec `yaml:"otlp"`
	// Required refuses a request (503 `audit_unavailable`) when its line is not written within 100 ms. Needs `file` or `stdout`: the first of the two that is there. Without it, such lines are counted as dropped and the request goes on.
	Required bool `yaml:"required"`
	// Rotate says when `file` is put aside and a new one begun. The chain goes on.
	Rotate AuditRotateSpec `yaml:"rotate"`
	// Key makes the chain a keyed one (HMAC-SHA-256): who can write the file and does not have the key cannot make it up anew. At least 32 characters. `audit verify` needs it too.
	Key SecretSpec `yaml:"key"`
}

// AuditRotateSpec is the `rotate` block of `audit`. Files put aside are named FILE.TIME-NUMBER, by when that was and the number of their first line.
type AuditRotateSpec struct {
	// Size is the size that a file does not grow beyond, from 64KiB.
	Size Size `yaml:"size" default:"100MiB"`
	// Age is how old a file gets, from 1m.
	Age Duration `yaml:"age" default:"24h"`
	// Keep is how many files that were put aside are kept; the oldest are removed. 0 keeps all.
	Keep int `yaml:"keep"`
}

// AuditSyslogSpec is a syslog server, spoken to as RFC 3164 says. It gets the lines off the request path; those that it does not take are counted as dropped.
type AuditSyslogSpec struct {
	// Address is the server: unix:///PATH, udp://HOST:PORT or tcp://HOST:PORT.
	Address string `yaml:"address" default:"unix:///dev/log"`
	// AllowPlaintext permits a server that is not on this host: syslog is not encrypted.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// Facility is the facility of the lines. Their severity is info, and warning for refusals.
	Facility string `yaml:"facility" default:"authpriv" enum:"auth,authpriv,daemon,user,local0,local1,local2,local3,local4,local5,local6,local7"`
	// Tag is the name that the lines begin with.
	Tag string `yaml:"tag" default:"envoy-mcp-auth"`
}
