"""Requests to the exchange: how they are sent, read and retried, and what the errors mean.

Read `http.py` first.
"""
