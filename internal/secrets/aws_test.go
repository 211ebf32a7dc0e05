package secrets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// awsServer is moto, which speaks the API of AWS, behind a proxy that can fail
// as AWS does.
type awsServer struct {
	*httptest.Server
	client *secretsmanager.Client
	// fault is an error code answered instead, with its status; empty for none.
	fault atomic.Pointer[awsFault]
	// signed is the access key id of the last request.
	signed atomic.Pointer[string]
}

type awsFault struct {
	code   string
	status int
}

// motoPath finds moto: $MOTO, or what tools/install moto put beside go.mod. A
// test without it is skipped, but where CI is set it fails.
func motoPath(t *testing.T) string {
	t.Helper()
	missing := errors.New("no moto found: set $MOTO to moto_server, or run tools/install moto")
	return cached.Require(t, "moto", cached.Part{Env: "MOTO", Dir: "moto", Program: "moto_server", Missing: missing}.Find, missing)
}

func newAWS(t *testing.T) *awsServer {
	t.Helper()
	address, err := realprocess.Address(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(address)
	ctx, cancel := context.WithCancel(context.Background())
	moto := exec.CommandContext(ctx, motoPath(t), "-H", "127.0.0.1", "-p", port)
	moto.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()} // nothing of AWS
	if err := moto.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = moto.Wait() })
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("moto did not start: %v", err)
		}
	}
	a := &awsServer{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, id, _ := strings.Cut(r.Header.Get("authorization"), "Credential=")
		id, _, _ = strings.Cut(id, "/")
		a.signed.Store(&id)
		if f := a.fault.Load(); f != nil {
			w.Header().Set("content-type", "application/x-amz-json-1.1")
			w.WriteHeader(f.status)
			_, _ = fmt.Fprintf(w, `{"__type":%q,"Message":"no %s"}`, f.code, canarySecret)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(a.Close)
	a.client = secretsmanager.New(secretsmanager.Options{
		Region: "eu-central-1", BaseEndpoint: aws.String("http://" + address),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "setup", SecretAccessKey: "setup"}, nil
		}),
	})
	return a
}

func (a *awsServer) create(t *testing.T, name, value string) (arn string) {
	t.Helper()
	got, err := a.client.CreateSecret(t.Context(), &secretsmanager.CreateSecretInput{Name: &name, SecretString: &value})
	if err != nil {
		t.Fatal(err)
	}
	return *got.ARN
}

func (a *awsServer) put(t *testing.T, name, value string) {
	t.Helper()
	if _, err := a.client.PutSecretValue(t.Context(), &secretsmanager.PutSecretValueInput{SecretId: &name, SecretString: &value}); err != nil {
		t.Fatal(err)
	}
}

// stores returns settings with a fixed access key.
func (a *awsServer) stores(t *testing.T) policy.SecretStores {
	t.Helper()
	return policy.SecretStores{AWS: &policy.AWSStore{
		Region: "eu-central-1", Endpoint: a.URL, AccessKeyID: tempFile(t, "AKFIRST\n"), SecretAccessKey: tempFile(t, canarySecret+"-key"),
	}}
}

// alone keeps the SDK from the credentials of the machine that runs the test.
func alone(t *testing.T) {
	t.Helper()
	none := tempFile(t, "").Name
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none,
		"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "",
	} {
		t.Setenv(name, value)
	}
}

// TestO9AWS: names, ARNs, members, rotation, throttling and the credentials.
func TestO9AWS(t *testing.T) {
	alone(t)
	a := newAWS(t)
	arn := a.create(t, "mcp/plain", canarySecret+"\n")
	a.create(t, "mcp/json", `{"api_key": "member-`+canarySecret+`", "port": 5432}`)
	if _, err := a.client.CreateSecret(t.Context(), &secretsmanager.CreateSecretInput{
		Name: aws.String("mcp/binary"), SecretBinary: []byte("bytes"),
	}); err != nil {
		t.Fatal(err)
	}
	stores := a.stores(t)
	plain, byARN, inJSON, binary := policy.AWSRef("mcp/plain", ""), policy.AWSRef(arn, ""), policy.AWSRef("mcp/json", "api_key"), policy.AWSRef("mcp/binary", "")
	number, noKey, noJSON, renamed := policy.AWSRef("mcp/json", "port"), policy.AWSRef("mcp/json", "none"), policy.AWSRef("mcp/plain", "x"), policy.AWSRef("mcp/none", "")
	s, log := live(t, stores, plain, byARN, inJSON, binary, number, noKey, noJSON, renamed)
	for ref, want := range map[policy.SecretRef]string{
		plain: canarySecret, byARN: canarySecret, inJSON: "member-" + canarySecret, binary: "bytes",
	} {
		if got := value(t, s, ref); got != want {
			t.Errorf("%s: want %q, got %q", ref, want, got)
		}
	}
	for ref, want := range map[policy.SecretRef]string{
		number: "is no string", noKey: `no key "none"`, noJSON: "no JSON object", renamed: "404 ResourceNotFoundException",
	} {
		if got := why(t, s, ref); !strings.Contains(got, want) {
			t.Errorf("%s: want %q in %q", ref, want, got)
		}
	}
	a.put(t, "mcp/plain", "second")
	until(t, "the second value", holds(s, plain, "second"))
	a.create(t, "mcp/none", "found")
	until(t, "the secret that was created later", func() bool { v, err := s.Secret(renamed); return err == nil && v.Reveal() == "found" })

	a.fault.Store(&awsFault{"ThrottlingException", http.StatusBadRequest})
	until(t, "the throttling in the log", func() bool { return strings.Contains(log.String(), "429 ThrottlingException") })
	if got := value(t, s, plain); got != "second" {
		t.Errorf("throttled in mid-run: %q", got)
	}
	a.fault.Store(nil)
	a.put(t, "mcp/plain", "third")
	until(t, "the third value", holds(s, plain, "third"))

	put(t, stores.AWS.AccessKeyID.Name, "AKSECOND")
	s.Refresh()
	until(t, "a request with the new access key", func() bool { return *a.signed.Load() == "AKSECOND" })
	if strings.Contains(log.String(), canarySecret) {
		t.Errorf("a secret is in the log: %s", log)
	}

	for name, tc := range map[string]struct {
		fault  *awsFault
		stores func(*policy.AWSStore)
		want   string
	}{
		"wrong key":  {fault: &awsFault{"UnrecognizedClientException", 400}, want: "refuses the read (403 UnrecognizedClientException)"},
		"no right":   {fault: &awsFault{"AccessDeniedException", 400}, want: "refuses the read (403 AccessDeniedException)"},
		"going":      {fault: &awsFault{"InvalidRequestException", 400}, want: "scheduled for deletion"},
		"down":       {fault: &awsFault{"InternalServiceError", 500}, want: "503 InternalServiceError"},
		"new code":   {fault: &awsFault{"Odd " + canarySecret, 418}, want: "refuses the request (418)"},
		"no network": {stores: func(st *policy.AWSStore) { st.Endpoint = "http://127.0.0.1:1" }, want: "connection refused"},
		"no credentials": {
			stores: func(st *policy.AWSStore) { st.AccessKeyID, st.SecretAccessKey = policy.SecretRef{}, policy.SecretRef{} },
			want:   "no credentials for AWS were found",
		},
	} {
		t.Run(name, func(t *testing.T) {
			a.fault.Store(tc.fault)
			defer a.fault.Store(nil)
			st := a.stores(t)
			if tc.stores != nil {
				tc.stores(st.AWS)
			}
			s, log := live(t, st, plain)
			if text := why(t, s, plain); !strings.Contains(text, tc.want) || strings.Contains(text+log.String(), canarySecret) {
				t.Errorf("want %q in %q; log: %s", tc.want, text, log)
			}
		})
	}
}
