"""GraphQL operations over WebSockets and event streams.

Read `operations.py` first: it runs an operation. `websocket.py` and `event_stream.py` are its two transports.
"""
