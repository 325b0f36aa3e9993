"""Who is measured beside the project: each a whole small server that knows DATABASE_URL and its port, no more.

They run in the benchmark's own environment, so mypy sees none of the packages that only they use.
"""
