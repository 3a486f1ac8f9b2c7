"""Generated protobuf and gRPC stubs of polyhead.v1; see protos/generate.py."""
