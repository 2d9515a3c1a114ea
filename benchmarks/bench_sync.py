"""Measure the sync plugin between two processes on loopback: ``nox -s bench_sync``; ``-- --quick`` for a tenth.

Prints each figure beside where it should be. Memory is the highest resident size of the receiving process.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from rich.console import Console

from benchmarks.harness import BenchmarkError, Pair, pairs

_TIMEOUT_S = 1200.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    def line(self) -> str:
        """For people."""
        aim = ""
        if self.at_most is not None:
            aim = f"≤ {self.at_most:g}: {'yes' if self.value <= self.at_most else 'NO'}"
        if self.at_least is not None:
            aim = f"≥ {self.at_least:g}: {'yes' if self.value >= self.at_least else 'NO'}"
        return f"{self.name:<42} {self.value:>12,.1f} {self.unit:<6} {aim}"


async def _measure(pair: Pair, entries: int) -> list[Figure]:
    owner, other = pair.listener, pair.dialler
    pairing: dict[str, Any] = {"pairing_id": str(uuid.uuid4()), "root": os.urandom(32).hex()}
    hello = await other.call("hello")
    await owner.call("pair", device=hello, pending=True, **pairing)
    await other.call("pair", device=pair.hello, pending=False, **pairing)
    await pair.both("connect")
    found: list[Figure] = []

    await owner.call("create")
    seconds = await owner.call("fill", count=entries, timeout_s=_TIMEOUT_S)
    found.append(Figure("written in bulk", entries / seconds, "/s", at_least=10_000))
    await owner.call("invite")
    joined = await other.call("join", entries=entries, timeout_s=_TIMEOUT_S)
    scale = entries / 1_000_000
    found.append(Figure(f"initial sync of {entries:,} entries", joined["seconds"], "s", at_most=60 * scale))
    found.append(Figure("  memory of the receiver", joined["peak_mib"], "MiB", at_most=200))
    found.append(Figure("  memory of the sender", (await owner.call("usage"))["rss_mib"], "MiB", at_most=200))

    more = min(entries // 4, 50_000)
    began = time.time()
    await owner.call("fill", count=more, first=entries, timeout_s=_TIMEOUT_S)
    done = await other.call("wait", entries=entries + more, timeout_s=_TIMEOUT_S)
    found.append(Figure("written there and applied here, in bulk", more / (done - began), "/s", at_least=10_000))

    singles = 100
    async with anyio.create_task_group() as group:
        group.start_soon(partial(owner.call, "echo", count=singles))
        await anyio.sleep(0.2)
        single = await other.call("single", count=singles)
    found.append(Figure("single put visible there, median", single["median"], "ms", at_most=50))
    found.append(Figure("single put visible there, 99 %", single["p99"], "ms"))

    await anyio.sleep(1)
    equal = await other.call("verify")
    if not equal["equal"]:
        raise BenchmarkError("the replicas differ after the sync")
    found.append(Figure("verify equal replicas", equal["seconds"] * 1e3, "ms", at_most=2000))
    found.append(Figure("  exchanged", equal["bytes"] / 1024, "KiB", at_most=64))
    await owner.call("differ", count=10)
    differ = await other.call("verify")
    if differ["differing"] != 10:
        raise BenchmarkError(f"{differ['differing']} differing entries found instead of 10")
    found.append(Figure("find 10 that differ", differ["seconds"] * 1e3, "ms", at_most=3000))
    found.append(Figure("  exchanged", differ["bytes"] / 1024, "KiB"))
    return found


async def _run(entries: int) -> int:
    console = Console(highlight=False)
    console.print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    async with pairs("benchmarks.sync_peer", ["sdnet"]) as contenders:
        found = await _measure(contenders["sdnet"], entries)
    for figure in found:
        console.print(figure.line())
    return 0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 entries instead of a million")
    parser.add_argument("--entries", type=int)
    arguments = parser.parse_args()
    return anyio.run(_run, arguments.entries or (100_000 if arguments.quick else 1_000_000))


if __name__ == "__main__":
    sys.exit(main())
