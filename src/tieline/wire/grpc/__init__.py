"""gRPC over HTTP/2, without sockets: messages, statuses, metadata and time-outs as they stand on the wire."""
