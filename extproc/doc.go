// Package extproc is Envoy's side: an external-processing server
// (envoy.service.ext_proc.v3) that answers each request with the header changes
// the policy asks for.
//
// Read it in the order of a request: Process (one message, one reply) → decide
// (the steps of a decision) → response (what Envoy is told).
//
//	server, err := extproc.New(extproc.Config{Tokens: cache, Secrets: store, Now: time.Now})
//	err = server.Load(set)
//	grpcServer := grpc.NewServer(server.Options()...)
//	server.Register(grpcServer)
//
// The one rule everything here serves: a stream never ends without an error
// before a reply was sent, because Envoy takes such an end for "let it pass,
// untouched", whatever failure_mode_allow says.
package extproc
