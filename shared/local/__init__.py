"""Everything behind `make run` and `make demo`: embedded servers, child processes, the built pages.

Read `stack.py` first.
"""
