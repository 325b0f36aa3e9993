"""The schema has no breaking change since the last release, whose schema is a file beside this one."""

import re
from pathlib import Path

import pytest
from graphql import build_schema
from graphql.utilities import find_breaking_changes

from server.schema.root import schema
from shared.version import VERSION

ROOT = Path(__file__).parents[3]
SERVED = schema.as_str() + "\n"
RELEASED = Path(__file__).with_name("released.graphql").read_text(encoding="utf-8")
RENEW = "cp server/schema/schema.graphql tests/unit/schema/released.graphql"


def breaking(old: str, new: str) -> list[str]:
    return [change.description for change in find_breaking_changes(build_schema(old), build_schema(new))]


def headings(changelog: str) -> list[str]:
    """The sections, newest first: `Unreleased`, if there is one, then such as `0.2.0 (2026-12-01)`."""
    return re.findall(r"^## (.+)$", changelog, re.MULTILINE)


def test_no_change_breaks_a_client_of_the_last_release() -> None:
    assert breaking(RELEASED, SERVED) == [], (
        f"on purpose? Say so in CHANGELOG.md, under a new major version, and {RENEW}"
    )


def test_a_release_renews_what_is_compared_with() -> None:
    newest, *older = headings((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    is_released = newest != "Unreleased"
    release = newest if is_released else older[0]
    assert re.fullmatch(rf"{re.escape(VERSION)} \(\d{{4}}-\d\d-\d\d\)", release)
    assert not is_released or RELEASED == SERVED, f"begin a section Unreleased, or {RENEW}"


# What to replace in the schema, and with what.
BREAKING = {
    "a field is renamed": (r"\blagSeconds: Float", "lag: Float"),
    "a value may be missing": (r"(?<=  price: )Decimal!", "Decimal"),
    "another type": (r"\bsamples: Int!", "samples: Float!"),
    "an argument is renamed": (r"\bmaxAgeSeconds: Int", "maxAge: Int"),
    "an argument becomes required": (r"\bbefore: DateTime\b", "before: DateTime!"),
    "an enum's value is gone": (r"(?<=\n  )BACKFILLED\n", "HEALED\n"),
    "a type is gone": (r"\bGapReason\b", "WhyMissing"),
    "a root field is gone": (r"(?<=\n  )latestPrices\(", "newestPrices("),
}
HARMLESS = {
    "a field is new": (r"\btestnet: Boolean!", "testnet: Boolean!\n  volume: Decimal"),
    "an optional argument is new": (r"\bmaxAgeSeconds: Int", "maxAgeSeconds: Int\n    minAgeSeconds: Int = 0"),
    "a description is another": (r"Newest first", "The newest first"),
    "a field is deprecated": (r"\blagSeconds: Float", 'lagSeconds: Float @deprecated(reason: "x")'),
}


@pytest.mark.parametrize("name", [*BREAKING, *HARMLESS])
def test_what_counts_as_breaking(name: str) -> None:
    pattern, replacement = (BREAKING | HARMLESS)[name]
    changed, places = re.subn(pattern, replacement, SERVED)
    assert places
    assert (breaking(SERVED, changed) != []) == (name in BREAKING)
