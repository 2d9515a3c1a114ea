"""One side of ``bench_sync``, in a process of its own: a whole node with the sync plugin, on loopback.

Run as ``python -m benchmarks.sync_peer sdnet listen|dial``.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from benchmarks.child import raise_file_limit, resident_bytes, serve_commands, take_standard_output

__all__ = ["main"]


class Node:
    """A node with one library."""

    def __init__(self, core: Any, service: Any) -> None:
        self._core = core
        self._service = service
        self._to = uuid.UUID(int=0)
        self._library: Any = None
        self._folder: Any = None

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
        await self._core.connect(self._to, timeout_s=30)

    async def create(self) -> None:
        """Make the library."""
        self._library = await self._service.create("Bench")

    async def fill(self, count: int, first: int = 0) -> float:
        """Write entries in bulk; gives the seconds."""
        began = time.perf_counter()
        await self._library.put_many(_entries(first, count))
        return time.perf_counter() - began

    async def invite(self) -> None:
        """Invite the other side."""
        await self._service.invite(self._library.id, self._to)

    async def join(self, entries: int) -> dict[str, float]:
        """Accept, and wait until all entries are here."""
        before = resident_bytes()
        began = time.perf_counter()
        self._library = await self._service.accept(self._service.invitations()[0].library_id)
        await self._until(entries)
        took = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": took, "peak_mib": peak / 2**20, "grown_mib": (peak - before) / 2**20}

    async def wait(self, entries: int) -> float:
        """Wait until so many entries are here; gives the time at which they were."""
        await self._until(entries)
        return time.time()

    async def _until(self, entries: int) -> None:
        while self._library.replica.view.loading or self._library.role.value == 0:  # noqa: ASYNC110
            await trio.sleep(0.01)
        last = f"entry-{entries - 1:08d}"
        while await self._library.get("file", last) is None:  # noqa: ASYNC110 - counting would cost too much
            await trio.sleep(0.02)

    async def echo(self, count: int) -> None:
        """Answer each put of the other side with one of our own."""
        async with self._library.watch("ping") as changes:
            for _ in range(count):
                change = await changes.receive()
                await self._library.put("pong", change.id, {"at": 1})

    async def single(self, count: int) -> dict[str, float]:
        """Time single puts until the other side has each, by half of there and back."""
        times = []
        async with self._library.watch("pong") as changes:
            for number in range(count):
                began = time.perf_counter()
                await self._library.put("ping", str(number), {"at": 1})
                while (await changes.receive()).id != str(number):
                    pass
                times.append((time.perf_counter() - began) / 2)
                await trio.sleep(0.01)
        times.sort()
        return {"median": times[len(times) // 2] * 1e3, "p99": times[int(len(times) * 0.99)] * 1e3}

    async def verify(self) -> dict[str, Any]:
        """Compare with the other side."""
        found = await self._library.verify(self._to)
        return {
            "seconds": found.duration_s,
            "bytes": found.exchanged_bytes,
            "equal": found.equal,
            "differing": found.differing_count,
        }

    async def differ(self, count: int) -> None:
        """Change some entries behind the library's back, as a fault of the disk or of a program would."""

        def change(transaction: Any) -> None:
            from sdnet_sync.state import EntryState

            store = transaction.store
            keys = [row[0] for row in store.db.execute("SELECT key FROM entry ORDER BY random() LIMIT ?", (count,))]
            transaction.prefetch(keys)
            for key in keys:
                state: EntryState = transaction.state(key).copy()
                name = next(iter(state.fields))
                state.fields[name] = [write._replace(value="flipped") for write in state.fields[name]]
                transaction.replace_state(key, state)

        await self._library.replica.work(change)

    async def mirror(self, path: str, files: int) -> dict[str, float]:
        """Mirror a folder, and wait until it holds so many files and nothing is left to do."""
        folders = self._service.folders
        began = time.perf_counter()
        before = resident_bytes()
        if files and not os.listdir(path):
            # The other side makes the mirror.
            while not await self._library.count("sdnet.location"):  # noqa: ASYNC110
                await trio.sleep(0.005)
        location = await folders.mirror(self._library, Path(path))
        self._folder = folders.folder(location.id)
        await self._holds(files)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": time.perf_counter() - began, "peak_mib": peak / 2**20, "grown_mib": (peak - before) / 2**20}

    async def _holds(self, files: int) -> None:
        while True:
            await self._folder.settled.wait()
            if (await trio.to_thread.run_sync(self._folder.index.totals))[0] == files:
                return
            await trio.sleep(0.005)

    async def wait_for_file(self, path: str, size: int, mtime_ns: int) -> dict[str, float]:
        """Wait until a file of the mirror is as it is at the other side."""
        before = self._folder.fetcher.received_bytes
        while True:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(path)
                if (status.st_size, status.st_mtime_ns) == (size, mtime_ns):
                    return {"at": time.time(), "bytes": self._folder.fetcher.received_bytes - before}
            await trio.sleep(0.002)

    async def usage(self) -> dict[str, float]:
        """Memory."""
        return {"rss_mib": resident_bytes() / 2**20}


def _entries(first: int, count: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for number in range(first, first + count):
        yield "file", f"entry-{number:08d}", {"name": f"IMG_{number:08d}.jpg", "size": number * 37, "folder": "Holiday"}


async def _serve(role: str, answers_fd: int) -> None:
    from sdnet_core import NetworkingCore, load_config
    from sdnet_sync import SyncService
    from sdnet_sync.plugin import SyncPlugin

    with tempfile.TemporaryDirectory(prefix="sdnet-bench-") as home:
        environ = {
            "SDNET_HOME": home,
            "SDNET_NODE_NAME": role,
            "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0",
            "SDNET_DISCOVERY_MDNS": "false",
        }
        async with NetworkingCore(load_config(role, environ=environ), plugins=[SyncPlugin]) as core:
            node = Node(core, core.get_service(SyncService))
            names = "hello pair connect create fill invite join wait echo single verify differ usage"
            names = [*names.split(), "mirror", "wait_for_file"]
            await serve_commands({name: getattr(node, name) for name in names}, answers_fd=answers_fd)


def main() -> None:
    """Run this side until the parent closes standard input."""
    answers_fd = take_standard_output()
    raise_file_limit()
    trio.run(_serve, sys.argv[2], answers_fd)


if __name__ == "__main__":
    main()
