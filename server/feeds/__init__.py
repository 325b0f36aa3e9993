"""What subscribers follow: new prices and the progress of fetches. One reader per process; no GraphQL here.

Read `price_feed.py` first.
"""
