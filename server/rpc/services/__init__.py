"""One class per gRPC service: validates, asks the engine or the registry, answers."""
