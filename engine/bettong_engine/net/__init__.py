"""gRPC: plugins and operators on one side, the core's words on the other."""
