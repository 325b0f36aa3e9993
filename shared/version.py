"""The project's version, kept here because nothing is installed. A test compares it with pyproject.toml."""

VERSION = "0.2.0"
