"""PostgreSQL: one module of plain functions for each table or concept, with their SQL; `migrations/` is the schema.

Read `database.py` first (how a statement runs), then `prices.py`.
"""
