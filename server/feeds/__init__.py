"""Feeds for subscriptions: new prices and the progress of fetches. Each has one reader per process; no GraphQL here.

Read `price_feed.py` first.
"""
