"""Questions about a price history whose answers are computed: the price at instants, and statistics of a period."""
