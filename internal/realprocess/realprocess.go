// Package realprocess starts, pauses and ends the programs behind the other real
// parts that tests run.
package realprocess

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// Address returns a loopback HOST:PORT that nobody listens on; see Addresses.
func Address(ctx context.Context) (string, error) {
	all, err := Addresses(ctx, 1)
	if err != nil {
		return "", err
	}
	return all[0], nil
}

// Addresses returns n of them, no two alike. The ports are below those that the kernel
// gives to clients and to servers of any port, so that seldom anybody takes one before
// the program does; then the program says so and ends.
func Addresses(ctx context.Context, n int) ([]string, error) {
	const low, high = 12000, 32000
	var all []string
	begin := rand.IntN(high - low) //nolint:gosec // no secret: two that ask should seldom get the same
	for i := range high - low {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", low+(begin+i)%(high-low)))
		if err != nil {
			continue
		}
		defer l.Close() //nolint:errcheck // open until all are found, so that no two are alike
		if all = append(all, l.Addr().String()); len(all) == n {
			return all, nil
		}
	}
	return nil, fmt.Errorf("no %d ports are free between %d and %d", n, low, high)
}
