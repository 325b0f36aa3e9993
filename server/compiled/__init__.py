"""The fast path: a document becomes one SQL statement that writes the answer as JSON.

Read `middleware.py` first. Whatever cannot be compiled goes on to Strawberry.
"""
