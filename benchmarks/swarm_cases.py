"""The cases of ``bench_swarm`` and the ratios that come out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from benchmarks.harness import BenchmarkError, Case, Figures, Pair, Ratio, pairs, rotated

__all__ = ["CASES", "RATIOS", "Scale", "profile"]

_PEER = "benchmarks.swarm_peer"
_REQUEST_BYTES = 64
_PING_INTERVAL_S = 0.004
_UNITS = {
    "throughput": "MiB/s",
    "cpu_sender": "CPU s/GiB",
    "cpu_receiver": "CPU s/GiB",
    "cpu_both": "CPU s/GiB",
    "open_stream_median": "µs",
    "open_stream_p99": "µs",
    "new_stream_median": "µs",
    "new_stream_p99": "µs",
    "connect": "ms",
    "first_reply": "ms",
    "ping_idle_median": "µs",
    "ping_idle_p99": "µs",
    "ping_bulk_median": "µs",
    "ping_bulk_p99": "µs",
    "bulk_meanwhile": "MiB/s",
    "connections_held": "connections",
    "memory_per_connection": "KiB",
    "idle_cpu": "% of a core",
    "next_connection": "ms",
    "connect_all": "s",
    "until_connected": "bytes",
    "setup_payload": "bytes",
    "setup_wire": "bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is done.

    :param rounds: turns that each stack takes.
    :param seconds: about how long one measurement of a turn takes.
    :param held: idle connections held by one node of ours; the stock stack holds `stock_held`.
    """

    rounds: int = 5
    seconds: float = 0.8
    connects: int = 5
    held: int = 2000
    stock_held: int = 500


QUICK = Scale(rounds=2, seconds=0.25, connects=3, held=200, stock_held=100)


@dataclass(frozen=True, slots=True)
class Run:
    """What a case needs.

    :param say: is told how far the case is.
    """

    figures: Figures
    scale: Scale
    say: Callable[[str], None]

    def add(self, case: str, stack: str, **values: float) -> None:
        """Add one round's values."""
        self.figures.add(case, stack, _UNITS, **values)


async def _check(stacks: dict[str, Pair]) -> None:
    """See to it that stock py-libp2p was measured without any of this project's code."""
    for name, pair in stacks.items():
        if not name.startswith("sdnet") and any(usage["has_sdnet"] for usage in await pair.both("usage")):
            raise BenchmarkError(f"A process of {name} has imported sdnet_core.")


async def _bulk(run: Run, case: str, streams: int) -> None:
    async with pairs(_PEER, ["sdnet", "stock", "stock_tuned", "raw_aead", "raw"]) as stacks:
        sizes: dict[str, int] = {}
        for name, pair in stacks.items():
            await pair.dialler.call("connect", where=pair.hello)
            trial_bytes = 16 * 2**20
            for _ in range(2):
                seconds = await _send(pair, trial_bytes, streams)
            sizes[name] = min(2**31, max(8 * 2**20, int(trial_bytes / seconds * run.scale.seconds)))
        for number in range(run.scale.rounds):
            run.say(f"round {number + 1} of {run.scale.rounds}")
            for name in rotated(list(stacks), number):
                pair, size = stacks[name], sizes[name]
                before = await pair.both("usage")
                seconds = await _send(pair, size, streams)
                after = await pair.both("usage")
                receiver, sender = (
                    (b["cpu_s"] - a["cpu_s"]) * 2**30 / size for a, b in zip(before, after, strict=True)
                )
                run.add(
                    case,
                    name,
                    throughput=size / 2**20 / seconds,
                    cpu_sender=sender,
                    cpu_receiver=receiver,
                    cpu_both=sender + receiver,
                )
        await _check(stacks)


async def _send(pair: Pair, total_bytes: int, streams: int) -> float:
    seconds: float = await pair.dialler.call("bulk", total_bytes=total_bytes, streams=streams)
    return seconds


async def bulk_one(run: Run) -> None:
    """Bulk data over one stream"""
    await _bulk(run, "bulk_one", 1)


async def bulk_eight(run: Run) -> None:
    """Bulk data over eight streams of one connection"""
    await _bulk(run, "bulk_eight", 8)


async def requests(run: Run) -> None:
    """Small requests, one after the other, on an open stream and on new streams"""
    async with pairs(_PEER, ["sdnet", "stock", "stock_tuned", "raw"]) as stacks:
        for pair in stacks.values():
            await pair.dialler.call("connect", where=pair.hello)
            for new_streams in (False, True):
                await pair.dialler.call("requests", seconds=0.2, size_bytes=_REQUEST_BYTES, new_streams=new_streams)
        for number in range(run.scale.rounds):
            run.say(f"round {number + 1} of {run.scale.rounds}")
            for name in rotated(list(stacks), number):
                for kind, new_streams in (("open", False), ("new", True)):
                    got = await stacks[name].dialler.call(
                        "requests",
                        seconds=run.scale.seconds,
                        size_bytes=_REQUEST_BYTES,
                        new_streams=new_streams,
                    )
                    median, p99 = f"{kind}_stream_median", f"{kind}_stream_p99"
                    run.add("requests", name, **{median: got["median_us"], p99: got["p99_us"]})
        await _check(stacks)


async def connect(run: Run) -> None:
    """From asking for a connection to having it, and to the first reply on it"""
    async with pairs(_PEER, ["sdnet", "stock", "raw"]) as stacks:
        for number in range(run.scale.rounds):
            run.say(f"round {number + 1} of {run.scale.rounds}")
            for name in rotated(list(stacks), number):
                pair = stacks[name]
                for contender, direct in ((name, False), *([("stock_dial_addr", True)] if name == "stock" else [])):
                    got = await pair.dialler.call("connects", where=pair.hello, count=run.scale.connects, direct=direct)
                    run.add("connect", contender, connect=got["connect_ms"], first_reply=got["first_reply_ms"])
        await _check(stacks)


async def ping(run: Run) -> None:
    """Pings while nothing else happens, and while the pinging side sends all it can on another stream"""
    async with pairs(_PEER, ["sdnet", "stock", "stock_tuned", "raw"]) as stacks:
        for pair in stacks.values():
            await pair.dialler.call("connect", where=pair.hello)
            await _pings(pair, 0.3, bulk=True)
        for number in range(run.scale.rounds):
            run.say(f"round {number + 1} of {run.scale.rounds}")
            for name in rotated(list(stacks), number):
                for kind, bulk in (("idle", False), ("bulk", True)):
                    got = await _pings(stacks[name], 2 * run.scale.seconds, bulk)
                    median, p99 = f"ping_{kind}_median", f"ping_{kind}_p99"
                    run.add("ping", name, **{median: got["median_us"], p99: got["p99_us"]})
                    if bulk:
                        run.add("ping", name, bulk_meanwhile=got["bulk_mib_s"])
        await _check(stacks)


async def _pings(pair: Pair, seconds: float, bulk: bool) -> dict[str, float]:
    got: dict[str, float] = await pair.dialler.call("pings", seconds=seconds, interval_s=_PING_INTERVAL_S, bulk=bulk)
    return got


async def idle(run: Run) -> None:
    """Inbound connections held by one node: memory of each, idle CPU, and one more"""
    for name, count in (("sdnet", run.scale.held), ("stock", run.scale.stock_held)):
        async with pairs(_PEER, [name]) as stacks:
            pair = stacks[name]
            # One connection first, so that what is loaded and cached once does not count.
            await _hold(pair, 1)
            before = await _settled(pair)
            seconds = 0.0
            for held in range(0, count, 250):
                run.say(f"{name}: {held} of {count} connections")
                seconds += await _hold(pair, min(250, count - held))
            after = await _settled(pair)
            idle_s = 5 * run.scale.seconds
            await anyio.sleep(idle_s)
            later = await pair.listener.call("usage")
            held = await pair.listener.call("connection_count")
            got = await pair.dialler.call("connects", where=pair.hello, count=1, direct=False)
            run.add(
                "idle",
                name,
                connections_held=held,
                connect_all=seconds,
                memory_per_connection=(after["resident_bytes"] - before["resident_bytes"]) / count / 1024,
                idle_cpu=100 * (later["cpu_s"] - after["cpu_s"]) / idle_s,
                next_connection=got["first_reply_ms"],
            )
            if held < count + 1:
                raise BenchmarkError(f"{name} holds {held} connections of {count + 1}.")
            await _check(stacks)


async def _hold(pair: Pair, count: int) -> float:
    seconds: float = await pair.dialler.call("hold", where=pair.hello, count=count, parallel=16, timeout_s=300.0)
    return seconds


async def _settled(pair: Pair) -> dict[str, Any]:
    """The listener's usage when it has nothing left to do for half a second (it identifies whom it meets)."""
    with anyio.fail_after(60):
        before = await pair.listener.call("usage")
        while True:
            await anyio.sleep(0.5)
            after: dict[str, Any] = await pair.listener.call("usage")
            if after["cpu_s"] - before["cpu_s"] < 0.05:
                settled: dict[str, Any] = await pair.listener.call("usage", collect=True)
                return settled
            before = after


async def setup(run: Run) -> None:
    """Bytes that one connection's set-up moves, identify included"""
    async with pairs(_PEER, ["sdnet", "stock"]) as stacks:
        for number in range(min(3, run.scale.rounds)):
            run.say(f"round {number + 1}")
            for name in rotated(list(stacks), number):
                pair = stacks[name]
                got = await pair.dialler.call("setup_bytes", where=pair.hello, quiet_s=0.7)
                run.add(
                    "setup",
                    name,
                    until_connected=got["until_connected_bytes"],
                    setup_payload=got["payload_bytes"],
                    setup_wire=got["wire_bytes"],
                )
        await _check(stacks)


async def quic(run: Run) -> None:
    """QUIC: bulk data over one stream, small requests, connecting"""
    async with pairs(_PEER, ["sdnet_quic", "stock_quic"]) as stacks:
        size = max(4 * 2**20, int(8 * 2**20 * run.scale.seconds))
        for number in range(run.scale.rounds):
            run.say(f"round {number + 1} of {run.scale.rounds}")
            for name in rotated(list(stacks), number):
                pair = stacks[name]
                got = await pair.dialler.call(
                    "connects", where=pair.hello, count=run.scale.connects, direct=name.startswith("stock")
                )
                run.add("quic", name, connect=got["connect_ms"], first_reply=got["first_reply_ms"])
                await pair.dialler.call("connect", where=pair.hello)
                before = await pair.both("usage")
                seconds = await _send(pair, size, 1)
                after = await pair.both("usage")
                used = sum(b["cpu_s"] - a["cpu_s"] for a, b in zip(before, after, strict=True))
                run.add("quic", name, throughput=size / 2**20 / seconds, cpu_both=used * 2**30 / size)
                for kind, new_streams in (("open", False), ("new", True)):
                    got = await pair.dialler.call(
                        "requests", seconds=run.scale.seconds, size_bytes=_REQUEST_BYTES, new_streams=new_streams
                    )
                    median, p99 = f"{kind}_stream_median", f"{kind}_stream_p99"
                    run.add("quic", name, **{median: got["median_us"], p99: got["p99_us"]})
                await pair.dialler.call("disconnect")
        await _check(stacks)


CASES: dict[str, Case] = {
    case.__name__: case for case in (bulk_one, bulk_eight, requests, connect, ping, idle, setup, quic)
}


def _ratio(name: str, case: str, figure: str, other: str, meaning: str, **target: float) -> Ratio:
    """Ours over another stack's."""
    return Ratio(name=name, of=(case, "sdnet", figure), to=(case, other, figure), meaning=meaning, **target)


_MORE = "throughput, more is better"
_TIME = "time, less is better"
_CPU = "CPU time of both sides, less is better"

RATIOS: Sequence[Ratio] = (
    _ratio("bulk_vs_stock", "bulk_one", "throughput", "stock", _MORE, at_least=3.0),
    _ratio("bulk_vs_stock_tuned", "bulk_one", "throughput", "stock_tuned", _MORE),
    _ratio("bulk_vs_raw_aead", "bulk_one", "throughput", "raw_aead", _MORE, at_least=0.5),
    _ratio("bulk_vs_raw", "bulk_one", "throughput", "raw", _MORE),
    _ratio("bulk_cpu_per_gib_vs_stock", "bulk_one", "cpu_both", "stock", _CPU),
    _ratio("bulk_cpu_per_gib_vs_stock_tuned", "bulk_one", "cpu_both", "stock_tuned", _CPU),
    _ratio("bulk_cpu_per_gib_vs_raw_aead", "bulk_one", "cpu_both", "raw_aead", _CPU),
    _ratio("bulk_eight_vs_stock", "bulk_eight", "throughput", "stock", _MORE),
    _ratio("bulk_eight_vs_stock_tuned", "bulk_eight", "throughput", "stock_tuned", _MORE),
    _ratio(
        "bulk_eight_vs_raw_aead",
        "bulk_eight",
        "throughput",
        "raw_aead",
        f"{_MORE}; the bare sockets are eight connections",
    ),
    Ratio(
        name="bulk_eight_vs_one",
        of=("bulk_eight", "sdnet", "throughput"),
        to=("bulk_one", "sdnet", "throughput"),
        meaning="throughput over eight streams to that over one, more is better",
    ),
    _ratio("open_stream_time_vs_stock", "requests", "open_stream_median", "stock", _TIME),
    _ratio("open_stream_time_vs_stock_tuned", "requests", "open_stream_median", "stock_tuned", _TIME),
    _ratio("open_stream_time_vs_raw", "requests", "open_stream_median", "raw", _TIME),
    _ratio("new_stream_time_vs_stock", "requests", "new_stream_median", "stock", _TIME, at_most=0.4),
    _ratio("new_stream_time_vs_stock_tuned", "requests", "new_stream_median", "stock_tuned", _TIME),
    _ratio("new_stream_time_vs_new_tcp_connection", "requests", "new_stream_median", "raw", _TIME),
    _ratio("connect_time_vs_stock", "connect", "connect", "stock", _TIME, at_most=0.1),
    _ratio(
        "connect_time_vs_stock_without_its_pause",
        "connect",
        "connect",
        "stock_dial_addr",
        f"{_TIME}; `host.connect()` waits 250 ms, its inner `dial_addr()` does not",
    ),
    _ratio("first_reply_time_vs_stock", "connect", "first_reply", "stock", _TIME),
    _ratio("first_reply_time_vs_stock_without_its_pause", "connect", "first_reply", "stock_dial_addr", _TIME),
    Ratio(
        name="ping_p99_bulk_vs_idle",
        of=("ping", "sdnet", "ping_bulk_p99"),
        to=("ping", "sdnet", "ping_idle_p99"),
        meaning="ping p99 during bulk to that when idle, less is better",
        at_most=10.0,
    ),
    Ratio(
        name="stock_ping_p99_bulk_vs_idle",
        of=("ping", "stock", "ping_bulk_p99"),
        to=("ping", "stock", "ping_idle_p99"),
        meaning="the same of stock py-libp2p, for comparison",
    ),
    Ratio(
        name="raw_ping_p99_bulk_vs_idle",
        of=("ping", "raw", "ping_bulk_p99"),
        to=("ping", "raw", "ping_idle_p99"),
        meaning="the same of bare sockets, pings and bulk on connections of their own",
    ),
    _ratio("ping_p99_bulk_vs_stock", "ping", "ping_bulk_p99", "stock", _TIME),
    _ratio("ping_p99_bulk_vs_stock_tuned", "ping", "ping_bulk_p99", "stock_tuned", _TIME),
    _ratio("memory_per_connection_vs_stock", "idle", "memory_per_connection", "stock", "memory, less is better"),
    *(
        Ratio(
            name=f"quic_{name}_vs_stock_quic",
            of=("quic", "sdnet_quic", figure),
            to=("quic", "stock_quic", figure),
            meaning=meaning,
        )
        for name, figure, meaning in (
            ("bulk", "throughput", _MORE),
            ("open_stream_time", "open_stream_median", _TIME),
            ("new_stream_time", "new_stream_median", _TIME),
            ("connect_time", "connect", f"{_TIME}; beside the library's inner `dial_addr()`"),
        )
    ),
    _ratio("setup_bytes_vs_stock", "setup", "setup_payload", "stock", "bytes, less is better"),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a figure of ours should be."""

    case: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None


LIMITS: Sequence[Limit] = (
    Limit("idle", "connections_held", at_least=2000),
    Limit("idle", "memory_per_connection", at_most=60),
    Limit("idle", "idle_cpu", at_most=5),
    Limit("setup", "setup_wire", at_most=10_000),
)


async def profile(case: str, stack: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one case's work on one stack and look where the time goes; returns the listener's and the dialler's profile.

    :raises BenchmarkError: there is nothing to profile in that case.
    """
    work: dict[str, tuple[str, dict[str, Any]]] = {
        "bulk_one": ("bulk", {"streams": 1}),
        "bulk_eight": ("bulk", {"streams": 8}),
        "open_stream": ("requests", {"seconds": seconds, "size_bytes": _REQUEST_BYTES, "new_streams": False}),
        "new_stream": ("requests", {"seconds": seconds, "size_bytes": _REQUEST_BYTES, "new_streams": True}),
        "connect": ("connects", {"count": int(seconds * 40), "direct": stack.startswith("stock")}),
        "ping": (
            "pings",
            {"seconds": seconds, "interval_s": _PING_INTERVAL_S, "bulk": True},
        ),
    }
    if case not in work:
        raise BenchmarkError(f"There is no profile of {case}; there are {', '.join(work)}.")
    command, arguments = work[case]
    async with pairs(_PEER, [stack]) as stacks:
        pair = stacks[stack]
        if command == "connects":
            arguments["where"] = pair.hello
        else:
            await pair.dialler.call("connect", where=pair.hello)
        if command == "bulk":
            trial_s = await _send(pair, 32 * 2**20, 1)
            arguments["total_bytes"] = int(32 * 2**20 / trial_s * seconds)
        await pair.both("profile_start")
        await pair.dialler.call(command, **arguments)
        listener, dialler = await pair.both("profile_stop")
    return listener, dialler
