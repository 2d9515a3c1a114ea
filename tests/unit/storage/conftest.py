"""What the tests of `SecureStorage` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdnet_core.clock import SystemRandomness, run_in_thread
from sdnet_core.storage import SecureStorage


class SetClock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def clock() -> SetClock:
    """The clock of every storage of the test."""
    return SetClock()


@pytest.fixture
def storage_at(clock: SetClock) -> Callable[..., SecureStorage]:
    """Make a storage, as a restart would."""

    def make(root: Path, key: bytes = bytes(range(32)), **options: Any) -> SecureStorage:
        settings: dict[str, Any] = {"clock": clock, "randomness": SystemRandomness(), "runner": run_in_thread}
        return SecureStorage(root, key, **(settings | options))

    return make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the storage lies; not created yet."""
    return tmp_path / "data" / "network"


@pytest.fixture
def storage(root: Path, storage_at: Callable[..., SecureStorage]) -> SecureStorage:
    """A storage at ``root``."""
    return storage_at(root)
