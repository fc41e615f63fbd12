//go:build tools

// Keeps gRPC's interop tests among what go.mod locks.
package main

import (
	_ "google.golang.org/grpc/interop/client"
	_ "google.golang.org/grpc/interop/server"
)
