// Package compare sets the token cache beside others that people use: those of
// golang.org/x/oauth2, of the AWS and Google SDKs, and Envoy's credential_injector.
// All of it is tests: each contender meets the same token endpoint and the same
// callers, and what was seen makes the tables of docs/tokens.md.
//
//	make compare
//
// writes them anew. It takes some minutes and the real Envoy. A plain go test
// sees again what can be counted without waiting, and fails when the tables say
// something else or when our own cache is worse than it promises.
package compare
