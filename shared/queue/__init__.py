"""Redis: the arq queue, the fetches that clients asked for, deferred prices, and the registry of workers.

Read `client.py` first.
"""
