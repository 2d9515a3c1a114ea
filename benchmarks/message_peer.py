"""One side of ``bench_messages``, in a process of its own: a whole node with messaging, or stock py-libp2p.

Run as ``python -m benchmarks.message_peer sdnet|stock listen|dial``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from benchmarks.child import raise_file_limit, serve_commands, take_standard_output
from benchmarks.stacks import Stream, Where

_ECHO = "/bench/echo/1"
_YAMUX_HEADER_BYTES = 12
_TEXT_BYTES = 32


class _Counter:
    """Bytes and frames on the streams of a swarm: what goes into Noise."""

    def __init__(self) -> None:
        self.sent = self.received = 0

    def count(self, swarm: Any) -> None:
        """Count from now on what is sent and received on streams that are opened."""
        opened = swarm.open_stream

        async def open_stream(*args: Any, **options: Any) -> Any:
            stream = await opened(*args, **options)
            send, receive = stream.send, stream.receive

            async def counted_send(item: bytes) -> None:
                self.sent += len(item) + _YAMUX_HEADER_BYTES
                await send(item)

            async def counted_receive(max_bytes: int = 65536) -> bytes:
                data: bytes = await receive(max_bytes)
                self.received += len(data) + _YAMUX_HEADER_BYTES
                return data

            stream.send, stream.receive = counted_send, counted_receive
            return stream

        swarm.open_stream = open_stream


class Node:
    """A node with the messaging plugin, on loopback."""

    def __init__(self, core: Any, service: Any, counter: _Counter) -> None:
        self._core = core
        self._service = service
        self._counter = counter
        self._to: uuid.UUID | None = None

    async def hello(self) -> dict[str, Any]:
        """Who it is, for the other side."""
        from sdnet_core.wire import encode

        return {"info": encode(self._core.device_info).hex(), "addresses": list(self._core.addresses)}

    async def pair(self, device: dict[str, Any], pairing_id: str, root: str, pending: bool) -> None:
        """Store the other side as paired."""
        from sdnet_core import DeviceInfo
        from sdnet_core.wire import decode

        info: DeviceInfo = decode(bytes.fromhex(device["info"]), DeviceInfo)
        await self._core.add_paired_device(
            info,
            pairing_id=uuid.UUID(pairing_id),
            pairing_root=bytes.fromhex(root),
            addresses=device["addresses"],
            pending=pending,
        )
        self._to = info.id

    async def connect(self) -> None:
        """Wait for the session."""
        assert self._to is not None
        await self._core.connect(self._to, timeout_s=30)

    async def acked(self, seconds: float, senders: int) -> dict[str, float]:
        """Send texts from many tasks, each waiting for its acknowledgement before the next, for so long."""
        assert self._to is not None
        text = "x" * _TEXT_BYTES
        count = 0
        sent, received = self._counter.sent, self._counter.received
        began = time.perf_counter()
        end = began + seconds

        async def send() -> None:
            nonlocal count
            while time.perf_counter() < end:
                receipt = await self._service.send_text(self._to, text)
                assert receipt.state == "delivered", receipt
                count += 1

        async with trio.open_nursery() as nursery:
            for _ in range(senders):
                nursery.start_soon(send)
        took = time.perf_counter() - began
        payload = count * _TEXT_BYTES
        return {
            "count": count,
            "rate": count / took,
            "overhead": (self._counter.sent - sent - payload) / count,
            "answer": (self._counter.received - received) / count,
        }

    async def latency(self, seconds: float, rate: float) -> dict[str, float]:
        """Send texts at a steady rate, whatever becomes of those before, and time each acknowledgement."""
        assert self._to is not None
        text = "x" * _TEXT_BYTES
        times: list[float] = []
        began = time.perf_counter()

        async def send(due: float) -> None:
            receipt = await self._service.send_text(self._to, text)
            assert receipt.state == "delivered", receipt
            times.append(time.perf_counter() - due)

        async with trio.open_nursery() as nursery:
            for number in range(int(seconds * rate)):
                # From when it was due, so that falling behind shows.
                due = began + number / rate
                if (wait := due - time.perf_counter()) > 0:
                    await trio.sleep(wait)
                nursery.start_soon(send, due)
        times.sort()
        return {"median": times[len(times) // 2] * 1e3, "p99": times[int(len(times) * 0.99)] * 1e3}

    async def clear(self) -> int:
        """Empty the inbox; gives how many messages it held."""
        count = 0
        while messages := await self._service.inbox():
            await self._service.mark_read_up_to(messages[-1].number)
            count += len(messages)
            for message in messages:
                await self._service.delete(message.id)
        return count

    async def read_all(self) -> None:
        """Mark everything read, so that it gives way to what comes."""
        await self._service.mark_read_up_to(2**62)


async def _sdnet(role: str, answers_fd: int) -> None:
    from sdnet_core import NetworkingCore, load_config
    from sdnet_messaging import MessagingService, store
    from sdnet_messaging.plugin import MessagingPlugin

    # Nobody reads along here; the bound of the inbox is not what is measured.
    store.MAX_MESSAGES_PER_DEVICE = 10_000_000
    store.MAX_BYTES_PER_DEVICE = 1 << 40
    with tempfile.TemporaryDirectory(prefix="sdnet-bench-") as home:
        environ = {
            "SDNET_HOME": str(Path(home)),
            "SDNET_NODE_NAME": role,
            "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0",
            "SDNET_DISCOVERY_MDNS": "false",
        }
        async with NetworkingCore(load_config(role, environ=environ), plugins=[MessagingPlugin]) as core:
            counter = _Counter()
            counter.count(core._swarm)
            node = Node(core, core.get_service(MessagingService), counter)
            commands: dict[str, Callable[..., Any]] = {
                "hello": node.hello,
                "pair": node.pair,
                "connect": node.connect,
                "acked": node.acked,
                "latency": node.latency,
                "clear": node.clear,
                "read_all": node.read_all,
            }
            await serve_commands(commands, answers_fd=answers_fd)


async def _stock(role: str, answers_fd: int) -> None:
    from benchmarks.stacks import make_stack

    stack = make_stack("stock")

    async def echo(stream: Stream) -> None:
        while data := await stream.receive(65536):
            await stream.send(data)

    async def serve(stream: Stream) -> None:
        try:
            await echo(stream)
        except stack.ends:
            pass

    async def hello() -> dict[str, Any]:
        if role == "dial":
            return {}
        where = stack.where()
        return {"port": where.port, "peer_id": where.peer_id}

    async def echoes(port: int, peer_id: str, seconds: float) -> dict[str, float]:
        await stack.connect(Where(port=port, peer_id=peer_id))
        stream = await stack.open(_ECHO)
        data = os.urandom(_TEXT_BYTES)
        count = 0
        began = time.perf_counter()
        while (now := time.perf_counter()) < began + seconds:
            await stream.send(data)
            got = b""
            while len(got) < len(data):
                got += await stream.receive(len(data) - len(got))
            count += 1
        await stream.close()
        await stack.disconnect()
        return {"rate": count / (now - began)}

    stack.serve(_ECHO, serve)
    async with stack.run(listening=role == "listen"):
        await serve_commands({"hello": hello, "echoes": echoes}, answers_fd=answers_fd)


def main() -> None:
    """Run one side until the parent closes standard input."""
    answers_fd = take_standard_output()
    raise_file_limit()
    name, role = sys.argv[1:]
    trio.run(_sdnet if name == "sdnet" else _stock, role, answers_fd)


if __name__ == "__main__":
    main()
