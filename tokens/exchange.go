package tokens

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// maxAnswer bounds the body of a token answer.
const maxAnswer = 256 << 10

// exchange is one token request on the wire. To x/oauth2 it is a transport; it
// hands on a small clean answer, or fails with an *Error. So what x/oauth2 would
// follow, believe or quote never gets to it.
type exchange struct {
	client *client
	host   string
	base   http.RoundTripper
	now    func() time.Time
	header func(http.Header) // last touches to the request; may be nil
	hidden redactor
	got    granted
}

// RoundTrip implements http.RoundTripper.
func (x *exchange) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	wants(r.Header)
	if x.header != nil {
		x.header(r.Header)
	}
	resp, err := x.base.RoundTrip(r)
	if err != nil {
		return nil, networkError(x.host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	x.got.at = x.now()
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		x.got.skew = date.Sub(x.got.at).Round(time.Second)
	}
	if bad := x.judge(resp); bad != nil {
		bad.Status = resp.StatusCode
		return nil, bad
	}
	body, err := json.Marshal(map[string]any{"access_token": x.got.access, "token_type": "Bearer"})
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: resp.Proto, ProtoMajor: resp.ProtoMajor, ProtoMinor: resp.ProtoMinor,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       r,
	}, nil
}

// wants says what answers we read.
func wants(h http.Header) {
	h.Set("Accept", "application/json")
	// Nothing is unpacked, so nothing can blow up.
	h.Set("Accept-Encoding", "identity")
	h.Set("User-Agent", "envoy-mcp-auth")
}

// judge sorts the answer: a token, or why not. The status is judged before the
// body, so a slow or endless body cannot change what a bad status means.
func (x *exchange) judge(resp *http.Response) *Error {
	host, status := x.host, resp.StatusCode
	switch {
	case status < 200:
		// 101 hands over the bare connection, which no deadline of ours ends.
		return refused(fmt.Sprintf("http_%d", status), "%s answered %d in place of a token", host, status)
	case status >= 300 && status < 400:
		return refused("redirect_refused", "%s answered %d: redirects are not followed, because the secret would travel; set token_url to the final address", host, status)
	case status >= 500 || status == http.StatusTooManyRequests:
		err := unavailable(fmt.Sprintf("http_%d", status), "%s answered %d%s", host, status, x.said(resp))
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			err.after = retryAfter(resp.Header, x.got.at)
		}
		return err
	case status >= 400:
		return x.denied(resp)
	}
	body, err := readBody(x.host, resp)
	if err != nil {
		return err
	}
	a, err := parseAnswer(body)
	if err == nil && a.code != "" {
		err = x.oauthError(a, status)
	}
	if err == nil {
		err = a.take(x.client, &x.got)
	}
	if err != nil {
		err.Text = host + ": " + err.Text
	}
	return err
}

// denied reads a 4xx (RFC 6749 §5.2).
func (x *exchange) denied(resp *http.Response) *Error {
	host, status := x.host, resp.StatusCode
	body, err := readBody(x.host, resp)
	if err == nil {
		if a, _ := parseAnswer(body); a.code != "" {
			err = x.oauthError(a, status)
			err.Text = host + ": " + err.Text
			return err
		}
	}
	err = refused(fmt.Sprintf("http_%d", status), "%s answered %d without an OAuth error", host, status)
	// 401 says that the credentials are bad even without a word of OAuth:
	// going on could lock the account.
	err.permanent = status == http.StatusUnauthorized
	return err
}

// said returns the OAuth error of a 5xx, for the log. Whatever goes wrong in
// reading it is nothing next to the status.
func (x *exchange) said(resp *http.Response) string {
	body, err := readBody(x.host, resp)
	if err != nil {
		return ""
	}
	a, _ := parseAnswer(body)
	if a.code == "" {
		return ""
	}
	return ": " + x.oauthError(a, resp.StatusCode).Text
}

// oauthError turns an error answer into an Error. The code comes from a closed
// list, the description is filtered and cut.
func (x *exchange) oauthError(a answer, status int) *Error {
	code, permanent := errorCode(a.code)
	text := "the answer is the error " + code
	if code == otherError {
		text = "the answer is an error without a registered code"
	}
	if d := x.hidden.clean(a.description); d != "" {
		text += ": " + d
	}
	err := refused(code, "%s", text)
	err.Status, err.permanent = status, permanent
	return err
}

// readBody reads a body that is neither packed nor too big.
func readBody(host string, resp *http.Response) ([]byte, *Error) {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return nil, refused("encoded", "the answer is compressed, although that was not asked for")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, networkError(host, err)
	}
	if len(body) > maxAnswer {
		return nil, refused("too_big", "the answer is over %d bytes", maxAnswer)
	}
	return body, nil
}

// networkError names a failure of the network in fixed words. The library's own
// words may quote what the other side sent.
func networkError(host string, err error) *Error {
	var (
		timeout   net.Error
		dns       *net.DNSError
		unknownCA x509.UnknownAuthorityError
		wrongName x509.HostnameError
		badCert   x509.CertificateInvalidError
		anyCert   *tls.CertificateVerificationError
		alert     tls.AlertError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, errPrivate):
		return refused("private_address", "%s has a private address, and only the metadata of the issuer named it: set allow_private if it is right", host)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return unavailable("timeout", "%s did not answer in full within %s", host, fetchDeadline)
	case errors.As(err, &dns):
		return unavailable("dns", "the name of %s does not resolve", host)
	case errors.As(err, &unknownCA):
		return unavailable("tls", "the certificate of %s is signed by an unknown authority: set ca", host)
	case errors.As(err, &wrongName):
		return unavailable("tls", "the certificate of %s is for another name", host)
	case errors.As(err, &badCert) && badCert.Reason == x509.Expired:
		return unavailable("tls", "the certificate of %s has expired or is not valid yet", host)
	case errors.As(err, &badCert), errors.As(err, &anyCert):
		return unavailable("tls", "the certificate of %s cannot be verified", host)
	case errors.As(err, &alert), errors.As(err, &record), strings.Contains(err.Error(), "tls: "):
		return unavailable("tls", "%s and this client agree on no TLS: 1.2 or newer is needed", host)
	case errors.Is(err, syscall.ECONNREFUSED):
		return unavailable("connection_refused", "%s refuses connections", host)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return unavailable("cut_off", "%s cut its answer off", host)
	}
	return unavailable("unreachable", "%s cannot be reached", host)
}
