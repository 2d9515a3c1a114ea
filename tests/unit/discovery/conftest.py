"""What the discovery tests share."""

from __future__ import annotations

import pytest

from sdnet_core.clock import SystemRandomness
from sdnet_core.identity import NetworkIdentity


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def peers() -> list[str]:
    """Three peer ids."""
    return [NetworkIdentity.generate(SystemRandomness()).peer_id for _ in range(3)]
