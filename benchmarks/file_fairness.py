"""Three transfers at once between two daemons, and pings beside them: what each gets, and how long the pings take."""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import BenchmarkError
from sdnet_core.testing import Daemon, paired_daemons

__all__ = ["measure_fairness"]

_PATIENCE_S = 600.0
_PING_EVERY_S = 0.02
_TRANSFERS = 3
_SETTLED = 0.05
"""Shares are compared from when each transfer has this part of its bytes until the first has all of them."""


class _Api:
    """One kept connection to a daemon's local API."""

    def __init__(self, daemon: Daemon) -> None:
        self._connection = http.client.HTTPConnection("localhost", timeout=_PATIENCE_S)
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.connect(str(daemon.socket))

    def ask(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Content-Type": "application/json"}
        self._connection.request(method, f"/v1{path}", None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        said = json.loads(answer.read())
        if answer.status >= 300:
            raise BenchmarkError(f"{path}: {said}")
        return said

    def close(self) -> None:
        self._connection.close()


def measure_fairness(home: Path, mib: int) -> dict[str, float]:
    """Send three files of ``mib`` MiB at once, and ping meanwhile.

    :returns: ``ping_p99`` and ``ping_median`` in ms, ``shares``: how far the least is behind the most, as a part of it.
    """
    home.mkdir()
    paths = [home / f"{number}.bin" for number in range(_TRANSFERS)]
    for path in paths:
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))
    with paired_daemons(home / "nodes", environment={"SDNET_NODE_DOWNLOADS": str(home / "downloads")}) as (alice, _bob):
        api = _Api(alice)
        try:
            ids = [
                api.ask("POST", "/file-transfer/transfers", {"device": "bob", "paths": [str(path)]})["id"]
                for path in paths
            ]
            return _watch(api, ids, mib << 20)
        finally:
            api.close()


def _watch(api: _Api, ids: list[str], size: int) -> dict[str, float]:
    pings_ms: list[float] = []
    first: list[int] | None = None
    last: list[int] | None = None
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        transfers = [api.ask("GET", f"/file-transfer/transfers/{one}") for one in ids]
        done = [transfer["done_bytes"] for transfer in transfers]
        if any(transfer["state"] in ("failed", "cancelled", "rejected") for transfer in transfers):
            raise BenchmarkError("One of three transfers at once failed.")
        if first is None and min(done) >= _SETTLED * size:
            first = done
        if max(done) < size:
            last = done
        if all(transfer["state"] == "completed" for transfer in transfers):
            break
        if time.monotonic() > deadline:
            raise BenchmarkError("Three transfers at once do not end.")
        pings_ms.append(api.ask("POST", "/devices/bob/ping")["rtt_s"] * 1000)
        time.sleep(_PING_EVERY_S)
    if first is None or last is None or len(pings_ms) < 10 or min(last) <= min(first):
        raise BenchmarkError("Three transfers at once ended too soon to be watched: take larger files.")
    shares = [end - begin for begin, end in zip(first, last, strict=True)]
    ranked = sorted(pings_ms)
    return {
        "ping_p99": ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))],
        "ping_median": statistics.median(pings_ms),
        "shares": 1 - min(shares) / max(shares),
    }
