"""Questions whose answers are computed from stored prices: the price at instants, statistics of a period, exports.

Each module is one question: a function from arguments to a statement, with its SQL.
"""
