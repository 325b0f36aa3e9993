"""PostgreSQL: one module of plain functions per table or concept, each with its SQL; `migrations/` is the schema.

Read `database.py` first (how a statement runs), then `prices.py`.
"""
