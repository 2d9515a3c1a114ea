"""Nodes linked in memory."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import anyio

from ..clock import Clock, Randomness, Runner, SystemRandomness, run_in_thread
from ..config import Config, load_config
from ..core import NetworkingCore
from ..discovery.candidates import Announcement, Candidate, CandidateSink, DiscoverySource
from ..swarm.memory import MemoryNetwork, MemorySwarm
from .links import FaultyLink

__all__ = ["LinkedNodes", "MemoryDiscovery", "linked_nodes", "memory_node", "pair"]


class MemoryDiscovery:
    """A discovery that all nodes of a memory network share: each sees what the others announce, at once."""

    def __init__(self) -> None:
        self._announced: dict[str, Announcement] = {}
        self._sinks: dict[str, CandidateSink] = {}

    def source(self, peer_id: str) -> DiscoverySource:
        """The source of one node."""
        return _MemorySource(self, peer_id)

    def forget(self, peer_id: str) -> None:
        """A node has vanished without a word: nobody hears of it any more, and it of nobody."""
        self._announced.pop(peer_id, None)
        self._sinks.pop(peer_id, None)

    def _announce(self, peer_id: str, announcement: Announcement) -> None:
        self._announced[peer_id] = announcement
        for other, sink in self._sinks.items():
            if other != peer_id:
                sink.found(_candidate(peer_id, announcement))

    def _join(self, peer_id: str, sink: CandidateSink) -> None:
        self._sinks[peer_id] = sink
        for other, announcement in self._announced.items():
            if other != peer_id:
                sink.found(_candidate(other, announcement))

    def _leave(self, peer_id: str) -> None:
        self._announced.pop(peer_id, None)
        self._sinks.pop(peer_id, None)
        for sink in self._sinks.values():
            sink.lost(peer_id)


class _MemorySource(DiscoverySource):
    name: ClassVar[str] = "memory"

    def __init__(self, shared: MemoryDiscovery, peer_id: str) -> None:
        self._shared = shared
        self._peer_id = peer_id

    def bury(self) -> None:
        """Say and hear nothing from now on."""
        self._shared = MemoryDiscovery()

    async def run(self, sink: CandidateSink) -> None:
        sink.ready()
        self._shared._join(self._peer_id, sink)
        try:
            await anyio.sleep_forever()
        finally:
            self._shared._leave(self._peer_id)

    def announce(self, announcement: Announcement) -> None:
        self._shared._announce(self._peer_id, announcement)


def _candidate(peer_id: str, announcement: Announcement) -> Candidate:
    return Candidate(peer_id, announcement.addresses, "memory", announcement.tags)


def memory_config(home: Path, name: str, *, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """The configuration of a node on a memory network: defaults that suit tests, below ``settings`` by section."""
    overrides: dict[str, dict[str, Any]] = {
        "node": {"name": name, "listen": ("/memory/0",), "downloads": str(home / name / "downloads")},
        "connections": {"reconnect_min_s": 0.02, "reconnect_max_s": 0.5},
    }
    for section, values in (settings or {}).items():
        overrides.setdefault(section, {}).update(values)
    return load_config(name, environ={"SDNET_HOME": str(home)}, overrides=overrides)


def memory_node(
    home: Path,
    name: str,
    *,
    network: MemoryNetwork,
    discovery: MemoryDiscovery,
    plugins: Sequence[Any] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
    runner: Runner = run_in_thread,
) -> NetworkingCore:
    """A node on a memory network, not yet started: ``async with memory_node(…) as core``.

    :param home: where its data go; the same home and name give the same node again.
    :param settings: configuration by section, over defaults that suit tests (quick reconnects).
    """
    return NetworkingCore(
        memory_config(home, name, settings=settings),
        plugins=plugins,
        swarm=lambda identity: MemorySwarm(network, identity.peer_id),
        sources=lambda identity: (discovery.source(identity.peer_id),),
        clock=clock,
        randomness=randomness,
        runner=runner,
    )


@dataclass(slots=True)
class LinkedNodes:
    """What `linked_nodes` gives: unpacks to its nodes.

    :param network: to cut, heal and slow links with.
    """

    nodes: tuple[NetworkingCore, ...]
    network: MemoryNetwork
    discovery: MemoryDiscovery
    home: Path

    def __iter__(self) -> Iterator[NetworkingCore]:
        return iter(self.nodes)

    def __getitem__(self, index: int) -> NetworkingCore:
        return self.nodes[index]

    def cut(self, a: NetworkingCore, b: NetworkingCore, *, silent: bool = False) -> None:
        """Cut the link between two nodes.

        :param silent: like a pulled cable (nothing arrives any more) instead of a reset.
        """
        self.network.cut(a.identity.peer_id, b.identity.peer_id, silent=silent)

    def link(self, a: NetworkingCore, b: NetworkingCore) -> FaultyLink:
        """The link between two nodes, to delay, slow, cut and heal."""
        return FaultyLink(self.network, a.identity.peer_id, b.identity.peer_id)

    def heal(self, a: NetworkingCore, b: NetworkingCore) -> None:
        """Restore the link between two nodes."""
        self.network.heal(a.identity.peer_id, b.identity.peer_id)


@asynccontextmanager
async def linked_nodes(
    count: int = 2,
    *,
    plugins: Sequence[Any] = (),
    paired: bool = True,
    home: Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
    runner: Runner = run_in_thread,
) -> AsyncIterator[LinkedNodes]:
    """Run nodes that are linked in memory, and by default paired and connected with each other.

    Example::

        async with linked_nodes(2, plugins=[EchoPlugin]) as (a, b):
            assert await a.request(b.device_info.id, "echo", b"hello") == b"hello"

    :param plugins: plugin classes; each node makes its own instances.
    :param paired: pair every node with every other, without the pairing protocol.
    :param settings: configuration by section, such as ``{"plugins": {"echo": {"loud": True}}}``.
    :param runner: where blocking work is done; `run_inline` for virtual time.
    :param home: where data go; a temporary folder by default.
    """
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    async with AsyncExitStack() as stack:
        if home is None:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sdnet-")))
        nodes = []
        for index in range(count):
            node = memory_node(
                home,
                f"node{index}",
                network=network,
                discovery=discovery,
                plugins=plugins,
                settings=settings,
                clock=clock,
                randomness=randomness,
                runner=runner,
            )
            nodes.append(await stack.enter_async_context(node))
        if paired:
            await _pair_all(nodes, randomness or SystemRandomness())
        yield LinkedNodes(tuple(nodes), network, discovery, home)


async def _pair_all(nodes: Iterable[NetworkingCore], randomness: Randomness) -> None:
    known: list[NetworkingCore] = []
    for node in nodes:
        for other in known:
            await pair(node, other, randomness)
        known.append(node)


async def pair(a: NetworkingCore, b: NetworkingCore, randomness: Randomness) -> None:
    """Pair two running nodes without the pairing protocol, and wait until they are connected."""
    pairing_id = uuid.UUID(bytes=randomness.bytes(16), version=4)
    root = randomness.bytes(32)
    await a.add_paired_device(
        b.device_info, pairing_id=pairing_id, pairing_root=root, addresses=b.addresses, pending=True
    )
    await b.add_paired_device(a.device_info, pairing_id=pairing_id, pairing_root=root, addresses=a.addresses)
    await a.connect(b.device_info.id)
    await b.connect(a.device_info.id)
