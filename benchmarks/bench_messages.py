"""Measure messaging between two processes: ``nox -s bench_messages``.

What is counted are texts that lie durably in the other node's inbox and were acknowledged, on one connection; beside
them, in the same run, echoes of stock py-libp2p, one after the other.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.to_thread
from rich.console import Console

from benchmarks import machine, report
from benchmarks.harness import ROOT, BenchmarkError, Figures, Pair, Ratio, pairs
from benchmarks.reconnect import reconnects

_OUT = ROOT / "benchmarks" / "out"
_DOCS = ROOT / "docs" / "benchmarks.md"
_MODULE = "benchmarks.message_peer"
_UNITS = {
    "rate": "/s",
    "overhead": "B",
    "answer": "B",
    "single_overhead": "B",
    "sender_cpu": "µs",
    "receiver_cpu": "µs",
    "restart": "s",
    "noticed": "s",
    "heal": "s",
    "median": "ms",
    "p99": "ms",
}
_LATENCY_RATE = 1000.0
_SENDERS = 512
_QUIET_CORES = 0.2

RATIOS = (
    Ratio(
        name="acked_rate_vs_stock_echo",
        of=("acked", "sdnet", "rate"),
        to=("acked", "stock", "rate"),
        meaning="durable, acknowledged messages to echoes of stock py-libp2p, one after the other",
        at_least=2.5,
    ),
)
_LIMITS = (
    ("acked_rate", ("acked", "sdnet", "rate"), 5000.0, None),
    ("overhead", ("acked", "sdnet", "overhead"), None, 100.0),
    ("p99_at_1000_per_second", ("latency", "sdnet", "p99"), None, 20.0),
    ("reconnect_after_restart", ("reconnect", "sdnet", "restart"), None, 3.0),
    ("reconnect_after_heal", ("reconnect", "sdnet", "heal"), None, 10.0),
)


async def _pair(pair: Pair) -> None:
    pairing = {"pairing_id": str(uuid.uuid4()), "root": os.urandom(32).hex()}
    listener, dialler = pair.hello, await pair.dialler.call("hello")
    await pair.listener.call("pair", device=dialler, pending=True, **pairing)
    await pair.dialler.call("pair", device=listener, pending=False, **pairing)
    await pair.both("connect")


async def _acked(pair: Pair, seconds: float, senders: int) -> dict[str, float]:
    """The figures of one run, with the CPU time that a message costs either process."""
    before = await pair.both("usage")
    got: dict[str, float] = await pair.dialler.call("acked", seconds=seconds, senders=senders)
    after = await pair.both("usage")
    count = got.pop("count")
    receiver, sender = ((then["cpu_s"] - now["cpu_s"]) / count * 1e6 for now, then in zip(before, after, strict=True))
    return {**got, "sender_cpu": sender, "receiver_cpu": receiver}


async def _measure(console: Console, rounds: int, seconds: float) -> dict[str, Any]:
    about = machine.describe("libp2p", "trio", "anyio", "cryptography", "msgspec", "cbor2")
    load = machine.OtherLoad()
    began = time.monotonic()
    figures = Figures()
    async with pairs(_MODULE, ["sdnet", "stock"]) as stacks:
        sdnet, stock = stacks["sdnet"], stacks["stock"]
        await _pair(sdnet)
        await sdnet.dialler.call("acked", seconds=1.0, senders=_SENDERS)  # imports, first stream, warm files
        for number in range(rounds):
            got = await stock.dialler.call("echoes", seconds=seconds, **stock.hello)
            figures.add("acked", "stock", _UNITS, rate=got["rate"])
            figures.add("acked", "sdnet", _UNITS, **await _acked(sdnet, seconds, _SENDERS))
            figures.add("one_by_one", "sdnet", _UNITS, **await _acked(sdnet, min(2.0, seconds), 1))
            got = await sdnet.dialler.call("latency", seconds=seconds, rate=_LATENCY_RATE)
            figures.add("latency", "sdnet", _UNITS, **got)
            console.print(f"round {number + 1} of {rounds}", highlight=False)
    for got in await anyio.to_thread.run_sync(reconnects, rounds):
        figures.add("reconnect", "sdnet", _UNITS, **got)
    about["other_load_cores"] = load.cores()
    limits = {
        name: (value, figures.units[of[2]], at_least, at_most)
        for name, of, at_least, at_most in _LIMITS
        if (value := figures.median(*of)) is not None
    }
    return report.result(
        figures,
        RATIOS,
        limits,
        benchmark="bench_messages",
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
        seconds=round(time.monotonic() - began),
        machine=about,
        scale={"rounds": rounds, "seconds": seconds, "senders": _SENDERS, "text_bytes": 32},
    )


def _docs(found: dict[str, Any]) -> list[str]:
    about = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [
        "## Messages",
        "",
        "`nox -s bench_messages` runs two nodes with the messaging plugin, each a process, on loopback. A message is a",
        "text of 32 bytes: it is stored in the sender's outbox, sent, stored in the receiver's inbox and acknowledged;",
        "both sides have committed it to the disk before it counts. `acked` has 512 senders in one process, each",
        "of which waits for its acknowledgement before it sends again; `one_by_one` has one. `overhead` is what one",
        "message adds to its text in the bytes that go into Noise, Yamux's headers included; `answer` is what comes",
        "back for it; `sender_cpu` and `receiver_cpu` are the CPU time of either process, all threads, for one",
        "message.",
        "`latency` is from the moment at which a message is due to its acknowledgement, at 1,000 messages a second.",
        "`reconnect` has two daemons: `restart` is from the restarted node being ready after a `kill -9` to the other",
        "being connected to it, `noticed` from the beginning of a silence (the process is stopped) to its being",
        "noticed with a keepalive of 1 s, `heal` from its end to being connected.",
        "`stock` is py-libp2p's own host echoing 32 bytes, one after the other, on one stream.",
        "",
        f"Measured {found['measured']} on {about['cores']} cores ({about['processor']}), {about['memory_gib']:g} GiB,"
        f" {about['kernel']}, {about['python']}; {versions}."
        f" Other programs kept {about['other_load_cores']} cores busy meanwhile.",
        "",
        *report.tables_as_markdown(found, RATIOS),
    ]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="nox -s bench_messages --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    try:
        found = anyio.run(_measure, console, 1 if options.quick else 5, 2.0 if options.quick else 5.0, backend="trio")
    except BenchmarkError as exc:
        console.print(str(exc), style="red", highlight=False, markup=False)
        return 1
    report.show(console, found, RATIOS)
    if (busy := found["machine"]["other_load_cores"]) and busy > _QUIET_CORES:
        console.print(f"Other programs kept {busy:g} cores busy meanwhile: repeat on a quiet machine.", style="yellow")
    path = _OUT / ("bench_messages.partial.json" if options.quick else "bench_messages.json")
    report.write_json(path, found)
    if not options.quick:
        report.write_docs(_DOCS, "bench_messages", _docs(found))
    console.print(f"Written to {path.relative_to(ROOT)} after {found['seconds']} s", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
