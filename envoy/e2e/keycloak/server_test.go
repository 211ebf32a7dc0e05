package keycloak_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The administrator that Keycloak makes at its first start.
const adminName, adminPassword = "admin", "made-up-password-of-the-administrator"

// keycloak is a Keycloak whose database outlives its process.
type keycloak struct {
	url, dir, address, program string

	cmd  *exec.Cmd
	done chan struct{} // closed when the process ended
}

// startKeycloak starts $KEYCLOAK, and skips the test where there is none.
func startKeycloak(t *testing.T, address string) *keycloak {
	t.Helper()
	program := os.Getenv("KEYCLOAK")
	if program == "" {
		t.Skip("needs a Keycloak: set $KEYCLOAK to its kc.sh, or run make e2e-keycloak")
	}
	k := &keycloak{url: "http://" + address, dir: t.TempDir(), address: address, program: program}
	t.Cleanup(k.stop)
	k.start(t)
	return k
}

// start runs the process, and returns when its realms answer. The first start of
// an installation also builds it, and the first with a database fills that.
func (k *keycloak) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(k.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the child holds its own descriptor
	host, port, _ := strings.Cut(k.address, ":")
	// Its start takes all the processors there are for a minute: what is under
	// test goes first.
	k.cmd = exec.Command("nice", "-n", "15", k.program, "start", "--db=dev-file", "--cache=local", //nolint:noctx // stopped by its process group
		"--http-enabled=true", "--http-host="+host, "--http-port="+port, "--hostname="+k.url,
		"--db-url=jdbc:h2:file:"+filepath.Join(k.dir, "keycloak")+";NON_KEYWORDS=VALUE",
		// How soon an unknown kid may make Keycloak ask for a client's keys again, in seconds.
		"--spi-public-key-storage--infinispan--min-time-between-requests=1")
	k.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + k.dir, "JAVA_HOME=" + os.Getenv("JAVA_HOME"), "JAVA_OPTS_KC_HEAP=-Xms64m -Xmx512m",
		"KC_BOOTSTRAP_ADMIN_USERNAME=" + adminName, "KC_BOOTSTRAP_ADMIN_PASSWORD=" + adminPassword,
	}
	k.cmd.Stdout, k.cmd.Stderr = log, log
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k.done = make(chan struct{})
	go func() {
		_ = k.cmd.Wait()
		close(k.done)
	}()
	begin := time.Now()
	for !k.serves(t.Context()) {
		select {
		case <-k.done:
			t.Fatalf("keycloak ended at its start\n%s", k.tail())
		case <-time.After(200 * time.Millisecond):
		}
		if time.Since(begin) > 5*time.Minute {
			t.Fatalf("keycloak does not serve after %s\n%s", time.Since(begin), k.tail())
		}
	}
	t.Logf("keycloak serves after %s", time.Since(begin).Round(time.Second))
}

func (k *keycloak) serves(ctx context.Context) bool {
	resp, err := get(ctx, k.url+"/realms/master/.well-known/openid-configuration")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// stop ends the process and all that it started.
func (k *keycloak) stop() {
	if k.cmd == nil || k.cmd.Process == nil {
		return
	}
	group := -k.cmd.Process.Pid
	_ = syscall.Kill(group, syscall.SIGTERM)
	select {
	case <-k.done:
	case <-time.After(10 * time.Second):
	}
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-k.done
}

func (k *keycloak) log() string { return filepath.Join(k.dir, "keycloak.log") }

func (k *keycloak) tail() string {
	b, err := os.ReadFile(k.log())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

func get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("keycloak: %w", err)
	}
	return resp, nil
}
