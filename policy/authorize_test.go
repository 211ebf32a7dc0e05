package policy

import (
	"crypto/sha256"
	"testing"
)

func keyCaller(name string, keys ...string) *Caller {
	c := &Caller{Name: name}
	for _, k := range keys {
		c.Keys = append(c.Keys, sha256.Sum256([]byte(k)))
	}
	return c
}

func sanCaller(name string, sans ...string) *Caller { return &Caller{Name: name, SANs: sans} }

func TestAuthorize(t *testing.T) {
	var (
		anyone  = &Caller{Name: "anyone", Any: true}
		ci      = keyCaller("ci", "old", "new")
		ops     = keyCaller("ops", "ops-key", "new")
		blank   = keyCaller("blank", "")
		litellm = sanCaller("litellm", "spiffe://company/litellm", "litellm.company.com")
		urn     = sanCaller("urn", "urn:company:agent")
	)
	for _, c := range []struct {
		title   string
		callers []*Caller
		key     []byte
		uri     string
		dns     string
		want    string
		why     Reason
	}{
		{"no callers", nil, nil, "", "", "", CallerUnknown},
		{"no callers, a key", nil, []byte("new"), "", "", "", CallerInvalid},
		{"no callers, a certificate", nil, nil, "spiffe://company/litellm", "", "", CallerUnknown},
		{"a caller of no kind", []*Caller{{Name: "x"}}, nil, "", "", "", CallerUnknown},
		{"a caller of no kind, an empty key", []*Caller{{Name: "x"}}, []byte{}, "", "", "", CallerInvalid},

		{"any", []*Caller{anyone}, nil, "", "", "anyone", Allowed},
		{"any, beside others", []*Caller{ci, litellm, anyone}, nil, "", "", "anyone", Allowed},
		{"any, beside a wrong key", []*Caller{ci, anyone}, []byte("wrong"), "", "", "anyone", Allowed},
		{"any, first in the list and a right key", []*Caller{anyone, ci}, []byte("new"), "", "", "ci", Allowed},
		{"any, first in the list and a right certificate", []*Caller{anyone, litellm}, nil, "spiffe://company/litellm", "", "litellm", Allowed},

		{"key", []*Caller{ci}, []byte("new"), "", "", "ci", Allowed},
		{"key, the other while rotating", []*Caller{ci}, []byte("old"), "", "", "ci", Allowed},
		{"key of the second caller", []*Caller{ci, ops}, []byte("ops-key"), "", "", "ops", Allowed},
		{"key of the first caller, with another behind", []*Caller{ci, ops, litellm}, []byte("old"), "", "", "ci", Allowed},
		{"key of two callers: the first", []*Caller{ops, ci}, []byte("new"), "", "", "ops", Allowed},
		{"key, none", []*Caller{ci}, nil, "", "", "", CallerUnknown},
		{"key, empty", []*Caller{ci}, []byte{}, "", "", "", CallerInvalid},
		{"key, empty and a policy that says so", []*Caller{blank}, []byte{}, "", "", "blank", Allowed},
		{"key, none and a policy with an empty one", []*Caller{blank}, nil, "", "", "", CallerUnknown},
		{"key, wrong", []*Caller{ci, ops}, []byte("wrong"), "", "", "", CallerInvalid},
		{"key, nearly right", []*Caller{ci}, []byte("new "), "", "", "", CallerInvalid},
		{"key, its hash", []*Caller{ci}, ci.Keys[0][:], "", "", "", CallerInvalid},
		{"key where only certificates count", []*Caller{litellm}, []byte("new"), "", "", "", CallerInvalid},

		{"URI", []*Caller{litellm}, nil, "spiffe://company/litellm", "", "litellm", Allowed},
		{"DNS", []*Caller{litellm}, nil, "", "litellm.company.com", "litellm", Allowed},
		{"URN", []*Caller{urn}, nil, "urn:company:agent", "", "urn", Allowed},
		{"DNS beside another URI", []*Caller{litellm}, nil, "spiffe://x", "litellm.company.com", "litellm", Allowed},
		{"no certificate", []*Caller{litellm}, nil, "", "", "", CallerUnknown},
		{"somebody else's", []*Caller{litellm}, nil, "spiffe://company/other", "other.company.com", "", CallerUnknown},
		{"prefix of the name", []*Caller{litellm}, nil, "spiffe://company/litell", "litellm.company", "", CallerUnknown},
		{"longer than the name", []*Caller{litellm}, nil, "spiffe://company/litellm/x", "x.litellm.company.com", "", CallerUnknown},
		{"another case", []*Caller{litellm}, nil, "SPIFFE://company/litellm", "LITELLM.company.com", "", CallerUnknown},
		{"a DNS name that reads like a URI", []*Caller{litellm}, nil, "", "spiffe://company/litellm", "", CallerUnknown},
		{"a URI that reads like a DNS name", []*Caller{litellm}, nil, "litellm.company.com", "", "", CallerUnknown},
		{"an empty name in the policy", []*Caller{sanCaller("x", "")}, nil, "", "", "", CallerUnknown},

		{"wrong key, right certificate", []*Caller{ci, litellm}, []byte("wrong"), "spiffe://company/litellm", "", "litellm", Allowed},
		{"right key, wrong certificate", []*Caller{litellm, ci}, []byte("new"), "spiffe://x", "", "ci", Allowed},
		{"both right: the key", []*Caller{litellm, ci}, []byte("new"), "spiffe://company/litellm", "", "ci", Allowed},
		{"both wrong", []*Caller{litellm, ci}, []byte("wrong"), "spiffe://x", "", "", CallerInvalid},
	} {
		t.Run(c.title, func(t *testing.T) {
			u := &Upstream{Callers: c.callers}
			got, why := u.Authorize(&Request{URISAN: c.uri, DNSSAN: c.dns}, &Screening{Key: c.key})
			name := ""
			if got != nil {
				name = got.Name
			}
			if name != c.want || why != c.why {
				t.Errorf("want %q %v, got %q %v", c.want, c.why, name, why)
			}
		})
	}
}

// The proofs come from Envoy and from x-mcp-auth-key, and from no other header.
func TestAuthorizeReadsNoOtherHeader(t *testing.T) {
	u := &Upstream{Callers: []*Caller{keyCaller("ci", "k"), sanCaller("litellm", "spiffe://company/litellm")}}
	r := &Request{Headers: headers(
		"authorization", "k", "x-api-key", "k", "x-litellm-api-key", "k", "x_mcp_auth_key", "k", "x-mcp-auth", "k",
		"x-forwarded-client-cert", "URI=spiffe://company/litellm", "cookie", "x-mcp-auth-key=k",
	)}
	var sc Screening
	if why := u.Screen(r, &sc); why != Allowed {
		t.Fatalf("screen: %v", why)
	}
	if c, why := u.Authorize(r, &sc); c != nil || why != CallerUnknown {
		t.Errorf("want caller_unknown, got %v %v", c, why)
	}
}
