"""What the operator reads about refused settings: each one, its value without secrets, and what is accepted."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

_SECRET = {"API_TOKEN"}


class Refusal(ValueError):
    """Why a value is refused. The operator reads it, so it repeats nothing of the value but names of parameters."""


def explain(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    lines = ["The settings cannot be used:"]
    for problem in error.errors():
        field = str(problem["loc"][0])
        accepted, name = _accepted(fields[field]), field.upper()
        if problem["type"] == "missing":
            lines.append(f"  {name} is not set; accepted: {accepted}")
        else:
            cause = problem.get("ctx", {}).get("error")
            reason = f": {cause}" if isinstance(cause, Refusal) else ""
            lines.append(f"  {name}={masked(name, problem['input'])} is refused{reason}; accepted: {accepted}")
    return "\n".join(lines)


def masked(name: str, value: Any) -> str:
    """The value of the variable as given, without secrets."""
    if name in _SECRET:
        return "***"
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    if name.upper().endswith(("_URL", "_ENDPOINT", "_PROXY")):
        # A password may stand between the user's name and the last @, or in a parameter, well-formed or not. The
        # parameter is masked first because it may contain an @; the @ stays, so that the text before it is masked too.
        text = re.sub(r"(password=)(?:[^&]*(@))?[^&]*", r"\1***\2", text, flags=re.IGNORECASE)
        text = re.sub(r"^((?:[\w+.-]*:)?//[^/@:]*|[^/@:]*):.*@", r"\1:***@", text, flags=re.DOTALL)
        # If the host is missing, the password stands where a port would.
        text = re.sub(r"(//[^/@:]*):(?!\*\*\*@|\d{1,5}(?![^/?,]))[^/,]*", r"\1:***", text)
    return text


def _accepted(field: FieldInfo) -> str:
    """The field's description, with its bounds in the place of `{ge}` and `{le}`."""
    bounds = {name: getattr(bound, name) for bound in field.metadata for name in ("ge", "le") if hasattr(bound, name)}
    return (field.description or "1 or 0").format(**bounds)
