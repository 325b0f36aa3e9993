"""The API's tokens, in a variable or in a file."""

import re
from pathlib import Path

TOKEN_RULE = "at least 8 printable ASCII characters without spaces"  # noqa: S105  words
TOKEN_FILE_RULE = f"a file with one token a line, each of {TOKEN_RULE}"


def split_tokens(text: str) -> tuple[str, ...]:
    """Comma-separated tokens. Raises `ValueError`, which repeats none of them."""
    tokens = tuple(dict.fromkeys(token.strip(" ") for token in text.split(",")))
    if not all(re.fullmatch(r"[!-~]{8,}", token) for token in tokens):
        raise ValueError("too short or not printable")
    return tokens


def read_token_file(path: str) -> tuple[str, ...]:
    """Tokens of a file, one a line or comma-separated. Raises `ValueError` with the reason for the operator."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        return split_tokens(",".join(line for line in lines if line.strip()))
    except OSError as error:
        raise ValueError(f"{error.strerror}; accepted: {TOKEN_FILE_RULE}") from None
    except ValueError:
        raise ValueError(f"accepted: {TOKEN_FILE_RULE}") from None
