"""The project's version; a test holds it against pyproject.toml, for the project runs from its folder, uninstalled."""

VERSION = "0.2.0"
