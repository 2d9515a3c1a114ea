"""A daemon seen through its local API: what has happened there, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sdnet_core.config import Config
from sdnet_core.daemon.client import ApiClient

__all__ = ["Watched"]

_PATIENCE_S = 60.0


class Watched:
    """A running daemon.

    :param config: whose daemon.
    :ivar client: its local API.
    """

    def __init__(self, config: Config) -> None:
        self.client = ApiClient(config)
        self._instance = config.instance

    def latest(self) -> int:
        """The number of the latest event."""
        return max((event["seq"] for event in self.client.get("/events/recent")), default=0)

    def wait_for(self, kind: str, after: int, *, which: Callable[[dict[str, Any]], bool] = lambda _: True) -> float:
        """Wait for the first event of a kind; gives when it was, seconds since the epoch.

        :param after: the number of the last event that does not count.
        :param which: of them counts.
        :raises TimeoutError: there is none for a minute.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            for event in self.client.get("/events/recent", kinds=kind, since=after):
                if which(event):
                    at: float = event["at"]
                    return at
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {kind} at {self._instance} within {_PATIENCE_S:g} s")
            time.sleep(0.02)
