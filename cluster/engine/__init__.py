"""The load engine: `send` carries a `load` to any HTTP/1.1 or gRPC server."""
