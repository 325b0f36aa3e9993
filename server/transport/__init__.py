"""uvicorn's HTTP and WebSocket protocols, with bounds for slow and greedy peers. Read `http.py` first."""
