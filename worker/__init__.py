"""The worker process: collects prices. Read `schedule.py` first: it lists every job and when it runs."""
