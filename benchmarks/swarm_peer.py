"""One node of one stack, in a process of its own: the workloads of ``bench_swarm``.

Run as ``python -m benchmarks.swarm_peer <stack> listen|dial``. The workloads are the same code for every stack.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

import trio

from benchmarks.child import raise_file_limit, serve_commands, take_standard_output
from benchmarks.proxy import CountingProxy
from benchmarks.stacks import PING, Stack, Stream, Where, make_stack

_SINK = "/bench/sink/1"
_DRAIN = "/bench/drain/1"
_ECHO = "/bench/echo/1"
_RECEIVE_BYTES = 262_144
_PING_BYTES = 32
_LENGTH = struct.Struct("!Q")


async def _exactly(stream: Stream, count: int) -> bytes:
    data = await stream.receive(count)
    while len(data) < count:
        more = await stream.receive(count - len(data))
        if not more:
            raise EOFError("The stream ended early.")
        data += more
    return data


class Listener:
    """Serves the workloads' protocols."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def serve(self) -> None:
        """Set the handlers."""
        self._stack.serve(_SINK, self._sink)
        self._stack.serve(_DRAIN, self._drain)
        self._stack.serve(_ECHO, self._echo)
        if type(self._stack).__name__ == "RawStack":
            self._stack.serve(PING, self._echo)

    async def _sink(self, stream: Stream) -> None:
        """Read as many bytes as announced, then say so."""
        header = await stream.receive(_LENGTH.size)
        (left,) = _LENGTH.unpack(header)
        while left > 0:
            data = await stream.receive(_RECEIVE_BYTES)
            if not data:
                return
            left -= len(data)
        await stream.send(b"\x01" if left == 0 else b"\x00")

    async def _drain(self, stream: Stream) -> None:
        """Read to the end."""
        try:
            while await stream.receive(_RECEIVE_BYTES):
                pass
        except self._stack.ends:
            pass

    async def _echo(self, stream: Stream) -> None:
        """Send back what comes."""
        try:
            while data := await stream.receive(4096):
                await stream.send(data)
        except self._stack.ends:
            pass

    async def connection_count(self) -> int:
        """How many connections there are."""
        return self._stack.connection_count()


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile (the highest value where there are fewer than a hundred), in microseconds."""
    ordered = sorted(seconds)
    return {
        "median_us": statistics.median(ordered) * 1e6,
        "p99_us": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e6,
        "count": len(ordered),
    }


class Dialler:
    """Makes the connections and measures.

    :param name: the stack; further nodes of it are made where many are needed.
    """

    def __init__(self, name: str, stack: Stack, nursery: trio.Nursery) -> None:
        self._name = name
        self._stack = stack
        self._nursery = nursery
        self.holds = False

    async def connect(self, where: dict[str, Any]) -> None:
        """Connect and stay connected."""
        await self._stack.connect(Where(**where))

    async def disconnect(self) -> None:
        """Close the connection."""
        await self._stack.disconnect()

    async def bulk(self, total_bytes: int, streams: int) -> float:
        """Send so many bytes over so many streams at once.

        :returns: seconds from opening the streams until the other side has said that it has all of them.
        """
        chunk = bytes(self._stack.chunk_bytes)
        chunks = max(1, total_bytes // streams // len(chunk))

        async def send() -> None:
            stream = await self._stack.open(_SINK)
            await stream.send(_LENGTH.pack(chunks * len(chunk)))
            for _ in range(chunks):
                await stream.send(chunk)
            if await _exactly(stream, 1) != b"\x01":
                raise ValueError("The other side received another number of bytes.")
            await stream.close()

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(streams):
                nursery.start_soon(send)
        return time.perf_counter() - began

    async def requests(self, seconds: float, size_bytes: int, new_streams: bool) -> dict[str, float]:
        """One request after the other for so many seconds, on one open stream or each on a new one."""
        request = bytes(size_bytes)
        taken: list[float] = []
        until = time.perf_counter() + seconds
        stream = None if new_streams else await self._stack.open(_ECHO)
        while (began := time.perf_counter()) < until:
            used = stream or await self._stack.open(_ECHO)
            await used.send(request)
            await _exactly(used, size_bytes)
            taken.append(time.perf_counter() - began)
            if stream is None:
                await used.close()
        if stream is not None:
            await stream.close()
        return _summary(taken)

    async def connects(self, where: dict[str, Any], count: int, direct: bool) -> dict[str, float]:
        """Connect, make one request, disconnect; so many times.

        :param direct: leave out what the stack's public call does besides connecting.
        """
        to_connect: list[float] = []
        to_reply: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            await (self._stack.connect_directly if direct else self._stack.connect)(Where(**where))
            to_connect.append(time.perf_counter() - began)
            stream = await self._stack.open(_ECHO)
            await stream.send(b"?")
            await _exactly(stream, 1)
            to_reply.append(time.perf_counter() - began)
            await stream.close()
            await self._stack.disconnect()
            # Both sides get over the last connection before the next.
            await trio.sleep(0.02)
        return {
            "connect_ms": statistics.median(to_connect) * 1e3,
            "first_reply_ms": statistics.median(to_reply) * 1e3,
        }

    async def pings(self, seconds: float, interval_s: float, bulk: bool) -> dict[str, float]:
        """Ping at intervals, while nothing else happens or while this side sends all it can on another stream."""
        stop = False
        sent_bytes = 0

        async def send_all_the_time() -> None:
            nonlocal sent_bytes
            chunk = bytes(self._stack.chunk_bytes)
            stream = await self._stack.open(_DRAIN)
            while not stop:
                await stream.send(chunk)
                sent_bytes += len(chunk)
            await stream.close()

        taken: list[float] = []
        stream = await self._stack.open(PING)
        async with trio.open_nursery() as nursery:
            if bulk:
                nursery.start_soon(send_all_the_time)
                await trio.sleep(0.3)
            sent_before, first = sent_bytes, time.perf_counter()
            while time.perf_counter() < first + seconds:
                began = time.perf_counter()
                await stream.send(bytes(_PING_BYTES))
                await _exactly(stream, _PING_BYTES)
                taken.append(time.perf_counter() - began)
                await trio.sleep(interval_s)
            bulk_mib_s = (sent_bytes - sent_before) / 2**20 / (time.perf_counter() - first)
            stop = True
        await stream.close()
        return {**_summary(taken), "bulk_mib_s": bulk_mib_s}

    async def hold(self, where: dict[str, Any], count: int, parallel: int) -> float:
        """Make so many nodes, each with its own identity, and let each connect.

        :returns: seconds until all were connected.
        """
        limiter = trio.CapacityLimiter(parallel)
        began = time.perf_counter()
        self.holds = True

        async def node(connected: trio.Event) -> None:
            stack = make_stack(self._name)
            async with stack.run(listening=False):
                await stack.connect(Where(**where))
                connected.set()
                await trio.sleep_forever()

        async def start() -> None:
            async with limiter:
                connected = trio.Event()
                self._nursery.start_soon(node, connected)
                await connected.wait()

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(start)
        return time.perf_counter() - began

    async def setup_bytes(self, where: dict[str, Any], quiet_s: float) -> dict[str, float]:
        """Connect a new node through a counting proxy and wait until nothing moves any more.

        The node is new because the two sides remember what identify told them of each other.
        """
        stack = make_stack(self._name)
        async with stack.run(listening=False), CountingProxy(where["port"]) as proxy:
            await stack.connect(Where(port=proxy.port, peer_id=where["peer_id"]))
            at_return = proxy.payload_bytes
            await proxy.wait_quiet(quiet_s)
            counts = {
                "until_connected_bytes": float(at_return),
                "payload_bytes": float(proxy.payload_bytes),
                "wire_bytes": float(proxy.wire_bytes()),
            }
            await stack.disconnect()
        return counts


async def _listen(name: str, answers_fd: int) -> None:
    stack = make_stack(name)
    listener = Listener(stack)
    listener.serve()
    async with stack.run(listening=True):

        async def hello() -> dict[str, Any]:
            return dataclasses.asdict(stack.where())

        await serve_commands({"hello": hello, "connection_count": listener.connection_count}, answers_fd=answers_fd)


async def _dial(name: str, answers_fd: int) -> None:
    stack = make_stack(name)

    async def hello() -> None:
        return None

    async with stack.run(listening=False), trio.open_nursery() as nursery:
        dialler = Dialler(name, stack, nursery)
        await serve_commands(
            {
                "hello": hello,
                "connect": dialler.connect,
                "disconnect": dialler.disconnect,
                "bulk": dialler.bulk,
                "requests": dialler.requests,
                "connects": dialler.connects,
                "pings": dialler.pings,
                "hold": dialler.hold,
                "setup_bytes": dialler.setup_bytes,
            },
            answers_fd=answers_fd,
        )
        if dialler.holds:
            # Closing thousands of nodes in order would take long and show nothing.
            os._exit(0)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Run one node until the parent closes standard input."""
    answers_fd = take_standard_output()
    raise_file_limit()
    name, role = sys.argv[1:]
    trio.run(_listen if role == "listen" else _dial, name, answers_fd)


if __name__ == "__main__":
    main()
