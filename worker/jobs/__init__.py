"""What a worker does: one module per job, plus storing and matching, which several jobs share.

Read `slots.py` first.
"""
