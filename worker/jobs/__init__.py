"""The jobs of a worker: one module for each, plus storing and chart matching, which several jobs share.

Read `slots.py` first.
"""
