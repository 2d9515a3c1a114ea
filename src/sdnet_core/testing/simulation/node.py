"""One device of a simulation: a whole `NetworkingCore` on the memory network, with clocks and a disk of its own."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from ...core import NetworkingCore
from ...discovery.candidates import DiscoverySource
from ...identity import NetworkIdentity
from ...swarm.memory import MemoryNetwork, MemorySwarm
from ..nodes import MemoryDiscovery, memory_config
from .recorder import RecorderPlugin

__all__ = ["SeededRandomness", "SimulatedClock", "SimulatedNode"]

T = TypeVar("T")

_EPOCH = 1_700_000_000.0
MAX_DISK_LATENCY_S = 0.004


class SimulatedClock:
    """A node's clocks on the virtual time of the event loop.

    :ivar wall_offset_s: change it to step the wall clock.
    :ivar slept_s: add to it to have the machine sleep: both clocks go on, the event loop's does not.
    """

    def __init__(self) -> None:
        self.wall_offset_s = 0.0
        self.slept_s = 0.0

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        return _EPOCH + self.wall_offset_s + self.monotonic()

    def monotonic(self) -> float:
        """Seconds, those of sleep included."""
        return anyio.current_time() + self.slept_s


class SeededRandomness:
    """Randomness that is none: the same for the same seed. For simulations only."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def bytes(self, length: int) -> bytes:
        """Bytes of the generator."""
        return self._random.randbytes(length)

    def uniform(self, low: float, high: float) -> float:
        """A number of the generator."""
        return self._random.uniform(low, high)


@dataclass(eq=False)
class SimulatedNode:
    """A device, over all its lives.

    :param home: its part of the disk; each life has a folder in it.
    :ivar life: counts up with each crash.
    :ivar alive: whether its process runs.
    :ivar device_id: once it has started for the first time.
    """

    name: str
    home: Path
    randomness: SeededRandomness
    settings: Mapping[str, Mapping[str, Any]]
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    life: int = 0
    alive: bool = False
    ready: bool = False
    crashed: bool = False
    device_id: uuid.UUID | None = None
    peer_id: str = ""
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event = field(default_factory=anyio.Event)

    @property
    def folder(self) -> Path:
        """Where it keeps its things in this life."""
        return self.home / str(self.life)

    @property
    def core(self) -> NetworkingCore:
        """The running node."""
        return self._core

    @property
    def recorder(self) -> RecorderPlugin:
        """Its plugin that keeps what comes."""
        return self._core.get_service(RecorderPlugin)

    def build(
        self, network: MemoryNetwork, discovery: MemoryDiscovery, on_event: Callable[[SimulatedNode, int, Any], None]
    ) -> NetworkingCore:
        """Make the node of the next run, not yet started."""
        life = self.life
        self._swarm: MemorySwarm | None = None
        self._source: Any = None

        def swarm(identity: NetworkIdentity) -> MemorySwarm:
            self.peer_id = identity.peer_id
            self._swarm = MemorySwarm(network, identity.peer_id)
            return self._swarm

        def sources(identity: NetworkIdentity) -> tuple[DiscoverySource, ...]:
            self._source = discovery.source(identity.peer_id)
            return (self._source,)

        self._core = NetworkingCore(
            memory_config(self.folder, self.name, settings=self.settings),
            plugins=[RecorderPlugin],
            swarm=swarm,
            sources=sources,
            clock=self.clock,
            randomness=self.randomness,
            runner=self._run_on_disk,
        )
        self._core.events.add_tap(lambda event: on_event(self, life, event))
        return self._core

    def vanish(self, network: MemoryNetwork, discovery: MemoryDiscovery, *, silent: bool) -> None:
        """Let nothing that the present process still does reach anybody."""
        if self._swarm is not None and network.swarms.get(self.peer_id) is self._swarm:
            network.crash(self.peer_id, silent=silent)
        if self._source is not None:
            self._source.bury()
            discovery.forget(self.peer_id)

    async def _run_on_disk(self, function: Callable[..., T], /, *args: Any) -> T:
        """Run a blocking function; the disk takes a while before and after."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(self.randomness.uniform(0, MAX_DISK_LATENCY_S))
            result = function(*args)
            await anyio.sleep(self.randomness.uniform(0, MAX_DISK_LATENCY_S))
        return result
