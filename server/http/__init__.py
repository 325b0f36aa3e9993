"""HTTP: how a request is read and what its answer looks like.

Read `endpoint.py` first: GraphQL over HTTP. The others serve pages, health checks and metrics.
"""
