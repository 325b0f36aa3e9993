"""The exchange: how it is asked, how its replies are read, what its errors mean, when a request is retried.

Read `http.py` first.
"""
