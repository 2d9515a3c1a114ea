"""How soon two daemons on loopback are connected again: after one was killed and restarted, and after a silence."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdnet_core.config import load_config
from sdnet_core.daemon.client import ApiClient
from sdnet_core.testing import Daemon, paired_daemons

__all__ = ["reconnects"]

_KEEPALIVE_S = 1.0
_PATIENCE_S = 60.0


class _Watched:
    """A daemon and its local API."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._client = ApiClient(load_config(daemon.name, environ=daemon.environment))

    @property
    def pid(self) -> int:
        found: int = self._client.get("/status")["pid"]
        return found

    def latest(self) -> int:
        """The number of the latest event."""
        return max((event["seq"] for event in self._client.get("/events/recent")), default=0)

    def wait_for(self, kind: str, after: int) -> float:
        """Wait for an event; gives when it was, seconds since the epoch."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (found := self._client.get("/events/recent", kinds=kind, since=after)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {kind} at {self.daemon.name} within {_PATIENCE_S:g} s")
            time.sleep(0.02)
        at: float = found[0]["at"]
        return at


@contextmanager
def _frozen(pid: int) -> Iterator[None]:
    """Stop a process for the length of the block: what it is sent is not answered, and nothing is reset."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def reconnects(rounds: int) -> list[dict[str, Any]]:
    """Measure some times.

    :returns: seconds: ``restart`` from the restarted node being ready to the other one being connected to it;
        ``noticed`` from the beginning of a silence to the other one's noticing, with a keepalive of 1 s; ``heal`` from
        the end of the silence to being connected.
    """
    settings = {"SDNET_CONNECTIONS_KEEPALIVE_INTERVAL_S": f"{_KEEPALIVE_S:g}"}
    found = []
    with tempfile.TemporaryDirectory(prefix="sdnet-bench-") as home:
        with paired_daemons(Path(home), environment=settings) as daemons:
            alice, bob = map(_Watched, daemons)
            for _ in range(rounds):
                before = alice.latest()
                os.kill(bob.pid, signal.SIGKILL)
                alice.wait_for("connection-lost", before)
                bob.daemon.start()
                ready = bob.wait_for("node-started", 0)
                restart_s = alice.wait_for("connection-established", before) - ready
                before = alice.latest()
                with _frozen(bob.pid):
                    began = time.time()
                    noticed_s = alice.wait_for("connection-lost", before) - began
                    before = alice.latest()
                    healed = time.time()
                heal_s = alice.wait_for("connection-established", before) - healed
                found.append({"restart": max(restart_s, 0.0), "noticed": noticed_s, "heal": heal_s})
    return found
