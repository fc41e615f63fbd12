"""The gRPC API of the sidecar."""
