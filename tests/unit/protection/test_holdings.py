"""Budgets in bytes: the newest asker is refused, and what is released is free again."""

import pytest

from server.protection.holdings import SOCKET_BYTES, SUBSCRIPTION_BYTES, Holdings, followers
from shared.errors import RateLimited


def test_a_client_has_a_part_of_the_process() -> None:
    holdings = Holdings(process_bytes=100, client_bytes=60)
    first = holdings.hold("a", 60)
    with pytest.raises(RateLimited, match="One client may hold"):
        holdings.hold("a", 1)
    with holdings.hold("b", 40):
        with pytest.raises(RateLimited, match="The server has no memory left"):
            holdings.hold("c", 1)
        first.release()
        first.release()
        assert holdings.total == 40
        holdings.hold("a", 60).release()
    assert (holdings.total, dict(holdings._clients)) == (0, {})


def test_one_client_may_have_two_fifths_of_the_sockets_with_a_subscription_each() -> None:
    sockets = followers(5000)
    for _ in range(2000):
        sockets.hold("a", SOCKET_BYTES)
        sockets.hold("a", SUBSCRIPTION_BYTES)
    with pytest.raises(RateLimited):
        sockets.hold("a", SUBSCRIPTION_BYTES)
    sockets.hold("b", 2000 * SOCKET_BYTES)
