"""uvicorn's HTTP and WebSocket protocols, with limits for slow and greedy clients. Read `http.py` first."""
