"""What the exchange says of itself, and for how long it holds."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.exchange.sockets.platform import LASTS, PlatformStates

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
MAINTENANCE: dict[str, Any] = {"maintenance": True}
LOCKED: dict[str, Any] = {"price_index": "btc_usd", "locked": True}


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.mark.parametrize(("state", "others"), [(MAINTENANCE, True), (LOCKED, False)])
def test_a_state_outlasts_the_prices_that_were_on_their_way_and_ends_with_a_later_one(
    state: dict[str, Any], others: bool
) -> None:
    clock = Clock()
    states = PlatformStates(("btc_usd", "eth_usd"), clock)
    states.note(state)
    clock.now += LASTS
    states.note_price("btc_usd")
    assert states.of("btc_usd") is not None
    assert (states.of("eth_usd") is not None) == others
    clock.now += timedelta(seconds=0.1)
    states.note_price("btc_usd")
    assert (states.of("btc_usd"), states.of("eth_usd")) == (None, None)


def test_a_state_ends_when_the_exchange_says_so() -> None:
    states = PlatformStates(("btc_usd",), Clock())
    states.note(LOCKED)
    states.note(MAINTENANCE)
    assert states.of("btc_usd") == "MAINTENANCE: the exchange announced a maintenance"
    states.note({"maintenance": False})
    assert states.of("btc_usd") == "INDEX_LOCKED: the exchange has locked this index"
    states.note(LOCKED | {"locked": False})
    assert states.of("btc_usd") is None


@pytest.mark.parametrize(
    "state",
    [{}, {"maintenance": "yes"}, {"maintenance": 1}, LOCKED | {"locked": 1}, LOCKED | {"price_index": ["btc_usd"]}],
)
def test_what_is_not_a_state_changes_nothing(state: dict[str, Any]) -> None:
    states = PlatformStates(("btc_usd",), Clock())
    states.note(state)
    assert states.of("btc_usd") is None


def test_states_of_other_indices_are_not_kept() -> None:
    states = PlatformStates(("btc_usd",), Clock())
    for number in range(100):
        states.note({"price_index": f"sim{number}_usd", "locked": True})
    assert states.of("sim1_usd") is None
