package main

import (
	"context"
	"errors"
	"io"
	"net"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
)

// empty is an ext_proc server written the usual way: generated types, the
// standard codec, a loop until Envoy closes the stream. It decides nothing.
type empty struct {
	extprocv3.UnimplementedExternalProcessorServer
}

// Process implements ExternalProcessorServer.
func (empty) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		_, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&extprocv3.ProcessingResponse{
			Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}},
		}); err != nil {
			return err
		}
	}
}

func serveEmpty(socket string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "unix", socket)
	if err != nil {
		return err
	}
	g := grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(g, empty{})
	return g.Serve(l)
}
