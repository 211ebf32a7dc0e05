// Package realprocess starts, pauses and ends the programs behind the other real
// parts that tests run.
package realprocess

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"syscall"
	"time"
)

// Process is a program that was started. Its methods may be called one after the
// other, from any goroutine.
type Process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it ended
}

// Start starts cmd in a session of its own, so that it outlives a Ctrl-C in the
// tests' terminal. The name is what errors call it.
func Start(name string, cmd *exec.Cmd) (*Process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{name: name, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is its process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ready waits until the process answers, and no longer than it runs.
func (p *Process) Ready(ctx context.Context, within time.Duration, answers func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready", p.name)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", p.name, ctx.Err())
		case <-tick.C:
		}
		if answers(ctx) {
			return nil
		}
	}
}

// Pause stops the process, so that it accepts connections and answers nothing. It
// returns when that is so: a busy machine may let it go on for a while.
func (p *Process) Pause() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		switch _, err := syscall.Wait4(p.PID(), &status, syscall.WUNTRACED, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return err
		case !status.Stopped():
			return fmt.Errorf("%s ended", p.name)
		default:
			return nil
		}
	}
}

// Continue ends Pause.
func (p *Process) Continue() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Stop ends the process at once, paused or not. It may be called twice.
func (p *Process) Stop() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Addresses returns n loopback HOST:PORTs, no two alike, that nobody listens on.
// Another process may take one before the program does; then that says so and ends.
func Addresses(ctx context.Context, n int) ([]string, error) {
	var all []string
	for range n {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() //nolint:errcheck // open until all are found, so that no two are alike
		all = append(all, l.Addr().String())
	}
	return all, nil
}
