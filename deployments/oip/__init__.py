"""The messages of the Open Inference Protocol's gRPC service, as protoc writes them from `open_inference.proto`."""
