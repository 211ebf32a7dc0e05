// Package tokenstest is a real OAuth authorization server on loopback, for tests
// and demonstrations. It issues JWT access tokens (RFC 9068) for the client
// credentials grant, publishes its keys, revokes, rotates, counts, records, and
// misbehaves on command. For users it exchanges tokens (RFC 8693), takes
// assertions about them (RFC 7523), and plays both sides of an ID-JAG:
//
//	as := tokenstest.Start(t, tokenstest.Config{Clients: map[string]tokenstest.Client{"id": {Secret: "s3cret"}}})
//	as.Fail(tokenstest.Status503)
//	… as.TokenURL() …
//
// It holds its keys and tokens in memory and is no authorization server for
// anything that matters.
package tokenstest
