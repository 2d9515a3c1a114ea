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

from benchmarks.watched import Watched
from sdnet_core.config import load_config
from sdnet_core.testing import Daemon, paired_daemons

__all__ = ["reconnects"]

_KEEPALIVE_S = 1.0


def _watched(daemon: Daemon) -> Watched:
    return Watched(load_config(daemon.name, environ=daemon.environment))


def _pid(daemon: Watched) -> int:
    found: int = daemon.client.get("/status")["pid"]
    return found


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
            alice, bob = map(_watched, daemons)
            for _ in range(rounds):
                before = alice.latest()
                os.kill(_pid(bob), signal.SIGKILL)
                alice.wait_for("connection-lost", before)
                daemons[1].start()
                ready = bob.wait_for("node-started", 0)
                restart_s = alice.wait_for("connection-established", before) - ready
                before = alice.latest()
                with _frozen(_pid(bob)):
                    began = time.time()
                    noticed_s = alice.wait_for("connection-lost", before) - began
                    before = alice.latest()
                    healed = time.time()
                heal_s = alice.wait_for("connection-established", before) - healed
                found.append({"restart": max(restart_s, 0.0), "noticed": noticed_s, "heal": heal_s})
    return found
