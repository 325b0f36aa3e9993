"""What keeps one client from taking the service: tokens, admission control and budgets.

Read `admission.py` first.
"""
