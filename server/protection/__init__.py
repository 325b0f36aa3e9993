"""Protection of the service from single clients: tokens, admission control and budgets.

Read `admission.py` first.
"""
