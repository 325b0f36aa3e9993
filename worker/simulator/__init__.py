"""A simulated exchange that speaks the real one's protocol, for `make demo` and the tests. Read `app.py` first."""
