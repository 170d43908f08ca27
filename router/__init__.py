"""The front door: HTTP and gRPC in, tokens out. Places each request on a pair of workers. Never imports torch."""
