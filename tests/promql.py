"""What a PromQL expression asks for: metrics, the labels it matches them by, and those it groups by."""

import re
from dataclasses import dataclass

# Strings first: what is inside them is no name.
_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<number>\d[\w.]*)|(?P<name>[a-zA-Z_:][\w:]*)|(?P<other>\S)"""
)
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end"}
_DURATION = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True)
class Asked:
    metrics: dict[str, set[str]]
    "Each with the labels it is matched by."
    grouped: set[str]


def asked(expression: str) -> Asked:
    tokens = [(m.lastgroup, m[0]) for m in _TOKEN.finditer(_DURATION.sub(" ", expression))]
    metrics: dict[str, set[str]] = {}
    grouped: set[str] = set()
    position = 0

    def until(end: str) -> list[str]:
        """The names up to a bracket, which begins at `position`."""
        nonlocal position
        names = []
        while tokens[position][1] != end:
            kind, text = tokens[position]
            names += [text] if kind == "name" else []
            position += 1
        return names

    while position < len(tokens):
        kind, text = tokens[position]
        position += 1
        following = tokens[position][1] if position < len(tokens) else ""
        if kind != "name" or text.lower() in _WORDS:
            continue
        if text in _GROUPING:
            if following == "(":
                grouped.update(until(")"))
        elif following == "(" or (following in _GROUPING):
            continue  # a function, or an aggregation
        else:
            labels = metrics.setdefault(text, set())
            if following == "{":
                labels.update(until("}"))
    return Asked(metrics, grouped)
