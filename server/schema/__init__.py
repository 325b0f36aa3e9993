"""The GraphQL schema: what can be asked, and what each argument means.

One module per concept holds its types and fields; `root.py` joins them, so start there. `context.py` is what a resolver
gets, `documents.py` limits documents before they run, `errors.py` decides what a client sees of an error.
"""
