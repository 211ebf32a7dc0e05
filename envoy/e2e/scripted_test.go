package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The types of a processor that does what a test says.
type (
	stream = grpc.BidiStreamingServer[extprocv3.ProcessingRequest, extprocv3.ProcessingResponse]
	act    func(stream) error
)

// scripted is a processor with whatever fault a case needs: ours cannot have it.
type scripted struct {
	extprocv3.UnimplementedExternalProcessorServer

	mu  sync.Mutex
	act act
}

// Process implements the service.
func (s *scripted) Process(st stream) error {
	s.mu.Lock()
	f := s.act
	s.mu.Unlock()
	return f(st)
}

func (s *scripted) set(f act) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.act = f
}

// serveScripted serves a script on a socket. A panic in it ends its stream
// without an error: the recovery that programs commonly have.
func serveScripted(socket string, s *scripted) (*grpc.Server, error) {
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", socket)
	if err != nil {
		return nil, err
	}
	srv := grpc.NewServer(grpc.StreamInterceptor(func(v any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		if os.Getenv("E2E_PROCESSOR") == "" {
			defer func() { _ = recover() }()
		}
		return h(v, ss)
	}))
	extprocv3.RegisterExternalProcessorServer(srv, s)
	healthv1.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(ln) }()
	return srv, nil
}

// startScripted runs the rendered configuration with a scripted processor.
func startScripted(t *testing.T, bootstrap func([]byte) []byte) (*rig, *scripted) {
	t.Helper()
	r := newRig(t, standard)
	s := &scripted{act: lend("T1")}
	srv, err := serveScripted(r.facts.Socket, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	b := r.render()
	if bootstrap != nil {
		b = bootstrap(b)
	}
	r.startEnvoy(b)
	r.waitProcessor(1)
	return r, s
}

// lend marks the request and sets a token, as our server does, and more.
func lend(token string, more ...string) act {
	return func(st stream) error {
		if _, err := st.Recv(); err != nil {
			return err
		}
		md, _ := metadata.FromIncomingContext(st.Context())
		fields := append([]string{"x-mcp-auth-guard", strings.Join(md.Get("mcp-upstream"), ","), "authorization", "Bearer " + token}, more...)
		return st.Send(setHeaders(fields...))
	}
}

func setHeaders(fields ...string) *extprocv3.ProcessingResponse {
	m := &extprocv3.HeaderMutation{RemoveHeaders: []string{"cookie", "x-litellm-api-key", "x-mcp-auth-key"}}
	for i := 0; i+1 < len(fields); i += 2 {
		m.SetHeaders = append(m.SetHeaders, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: fields[i], RawValue: []byte(fields[i+1])},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: m}},
	}}
}

func immediate(code typev3.StatusCode, details string, fields ...string) *extprocv3.ProcessingResponse {
	m := &extprocv3.HeaderMutation{}
	for i := 0; i+1 < len(fields); i += 2 {
		m.SetHeaders = append(m.SetHeaders, &corev3.HeaderValueOption{
			Header: &corev3.HeaderValue{Key: fields[i], RawValue: []byte(fields[i+1])},
		})
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status: &typev3.HttpStatus{Code: code}, Details: details, Headers: m, Body: []byte("no"),
		},
	}}
}

// after receives the message, then does f.
func after(f act) act {
	return func(st stream) error {
		if _, err := st.Recv(); err != nil {
			return err
		}
		return f(st)
	}
}

// sends receives the message and sends this.
func sends(resp *extprocv3.ProcessingResponse) act {
	return after(func(st stream) error { return st.Send(resp) })
}

// runScripted is the processor in a process of its own, for faults that take
// the process with them.
func runScripted(mode, socket string) error {
	var srv *grpc.Server
	ready := make(chan struct{})
	faults := map[string]act{
		"panic": after(func(stream) error {
			panic("fault") //nolint:forbidigo // the fault under test
		}),
		"exit": after(func(stream) error {
			os.Exit(0) //nolint:forbidigo // the fault under test
			return nil
		}),
		"stop": after(func(st stream) error {
			<-ready
			srv.Stop()
			<-st.Context().Done()
			return nil // the stream ends without an error, and without a reply
		}),
		"graceful": after(func(stream) error {
			<-ready
			go srv.GracefulStop()
			time.Sleep(50 * time.Millisecond)
			return nil
		}),
	}
	f, ok := faults[mode]
	if !ok {
		return fmt.Errorf("no fault %q", mode)
	}
	var err error
	if srv, err = serveScripted(socket, &scripted{act: f}); err != nil {
		return err
	}
	close(ready)
	time.Sleep(time.Minute) // killed long before
	return errors.New("nobody stopped this process")
}

// spawnScripted starts runScripted and returns how to end it.
func (r *rig) spawnScripted(mode string) (stop func()) {
	r.t.Helper()
	_ = os.Remove(r.facts.Socket)
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(self) //nolint:noctx // stopped by pid
	cmd.Env = append(os.Environ(), "E2E_PROCESSOR="+mode, "E2E_SOCKET="+r.facts.Socket)
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	r.eventually("the processor serves", 10*time.Second, func() bool {
		c, err := net.Dial("unix", r.facts.Socket) //nolint:noctx // local
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return func() {
		_ = cmd.Process.Kill()
		<-done
	}
}

// unavailable is an orderly refusal of the processor.
func unavailable(stream) error { return status.Error(codes.Unavailable, "no") }
