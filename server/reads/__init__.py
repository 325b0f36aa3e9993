"""One declaration per query field: how its arguments become a statement, and how a row becomes an object or JSON.

Read `fields.py` first. The Strawberry resolver and the compiled form of a field both come from its declaration.
"""
