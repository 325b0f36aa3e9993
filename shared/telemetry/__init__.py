"""Logs, metrics and traces of both processes. Read `logs.py` first."""
