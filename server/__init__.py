"""The API process. Read `app.py` first: everything it opens and every path it serves stands there."""
