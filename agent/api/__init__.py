"""The gRPC API: translates between protos and the words of `agent.model`, and decides nothing.

grpc is imported nowhere but here and in `agent.client`; whoever does not serve or call the API does not pay for it.
"""
