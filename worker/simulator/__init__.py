"""A stand-in for the exchange that speaks its protocol, for `make demo` and the tests. Read `app.py` first."""
