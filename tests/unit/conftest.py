"""What unit tests need of a request or a process: nothing of it reaches a server."""

from typing import Any

import pytest

from server.reads.context import Context
from shared.config.settings import Settings, SettingsError, load_settings
from tests.unit.replies import settings_for

UNUSED: Any = None
NEEDED = {"DATABASE_URL": "postgresql://localhost/prices", "REDIS_URL": "redis://localhost:6379/0"}


@pytest.fixture
def unused_context() -> Context:
    """A request whose resolvers never get as far as PostgreSQL or Redis."""
    return Context(UNUSED, UNUSED, settings_for())


class Loader:
    """Settings as a process reads them, from the environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, **variables: str) -> Settings:
        for name, value in {**NEEDED, **variables}.items():
            self._monkeypatch.setenv(name, value)
        return load_settings()

    def message(self, **variables: str) -> str:
        with pytest.raises(SettingsError) as caught:
            self(**variables)
        return str(caught.value)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Loader:
    return Loader(monkeypatch)
