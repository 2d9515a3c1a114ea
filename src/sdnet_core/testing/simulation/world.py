"""A network of simulated devices, what befalls it, and what must hold whatever does."""

from __future__ import annotations

import json
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

from ...devices.delivery import Priority
from ...devices.registry import Connected
from ...errors import NetworkingError
from ...events import ConnectionEstablished, ConnectionLost, MessageReceived, NetworkEvent, PluginFailed
from ...swarm.memory import MemoryNetwork
from ..nodes import MemoryDiscovery, pair
from .disk import SimulatedDisk
from .node import SeededRandomness, SimulatedNode
from .recorder import PROTOCOL_NAME

__all__ = ["World"]

SEND_TIMEOUT_S = 120.0
START_TIMEOUT_S = 120.0
SETTLE_TIMEOUT_S = 1800.0
KEY_LIFETIME_S = 24 * 3600.0


@dataclass(eq=False, slots=True)
class _Lane:
    """The messages of one priority from one device to another.

    :ivar tried: numbers that were given to the sender's node.
    :ivar accepted: those that it said it had stored.
    """

    tried: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    lock: anyio.Lock = field(default_factory=anyio.Lock)


class World:
    """A simulated network. Make it inside a seeded event loop.

    :param seed: decides everything that is left open.
    :param settings: of the nodes, by section.
    :ivar trace: what happened, a line each; the same for the same seed.
    :ivar violations: what must not happen and did.
    :ivar no_losses: set while no connection may be lost.
    """

    def __init__(
        self, seed: int, disk: SimulatedDisk, tasks: TaskGroup, *, nodes: int, settings: dict[str, dict[str, Any]]
    ) -> None:
        self.random = random.Random(f"{seed}/world")
        self.network = MemoryNetwork()
        self.trace: list[str] = []
        self.violations: list[str] = []
        self.no_losses = False
        self.revoking: set[frozenset[str]] = set()
        self._revoked: set[tuple[str, uuid.UUID]] = set()
        self._lanes: dict[tuple[str, str, Priority], _Lane] = {}
        self._disk = disk
        self._tasks = tasks
        self._discovery = MemoryDiscovery()
        self._steps_left = self._syncs_left = -1
        self._doomed: Callable[[], None] = lambda: None
        disk.on_sync = self._synced
        self.nodes = [
            SimulatedNode(f"n{index}", disk.root / f"n{index}", SeededRandomness(f"{seed}/{index}"), settings)
            for index in range(nodes)
        ]

    # Telling

    def log(self, what: str, /, **more: Any) -> None:
        """Add a line to the trace."""
        text = json.dumps(more, default=str) if more else ""
        self.trace.append(f"{anyio.current_time():14.6f} {what} {text}".rstrip().replace(str(self._disk.root), "~"))

    def violation(self, what: str) -> None:
        """Something happened that must not."""
        self.log("VIOLATION", what=what)
        self.violations.append(what)

    def _event(self, node: SimulatedNode, life: int, event: NetworkEvent) -> None:
        if node.life != life or not node.alive:
            return  # a process that has crashed is heard no more
        self.log(f"{node.name}.{life}", **msgspec.to_builtins(event.to_dict()))
        match event:
            case ConnectionEstablished(device_id=device_id) if (node.name, device_id) in self._revoked:
                self.violation(f"{node.name} connected to a device that it has revoked")
            case ConnectionLost(reason=reason) if self.no_losses:
                self.violation(f"{node.name} lost a connection although nothing was wrong: {reason}")
            case MessageReceived(device_id=device_id):
                self._check_received(node, device_id)
            case PluginFailed(reason=reason):
                self.violation(f"{node.name}: a plugin failed: {reason}")

    def _check_received(self, node: SimulatedNode, device_id: uuid.UUID) -> None:
        if (node.name, device_id) in self._revoked:
            self.violation(f"{node.name} took a message from a device that it has revoked")
        for live in node.core._connections.pool.of_device(device_id):
            # Not by now: the handler may have slept since with the whole machine.
            age_s = live.session.traffic.last_received - live.session.epoch.created
            if age_s > KEY_LIFETIME_S:
                self.violation(f"{node.name} took a message under keys of {age_s:.0f} s")

    # Lives of nodes

    async def start(self, node: SimulatedNode) -> None:
        """Start a node and wait until it is ready, or has crashed again."""
        node.scope, node.ended = anyio.CancelScope(), anyio.Event()
        node.alive, node.ready, node.crashed = True, False, False
        ready = anyio.Event()
        self._tasks.start_soon(self._live, node, node.life, node.scope, node.ended, ready)
        with anyio.move_on_after(START_TIMEOUT_S) as late:
            await ready.wait()
        if late.cancelled_caught:
            self.violation(f"{node.name} does not start")

    async def _live(
        self, node: SimulatedNode, life: int, scope: anyio.CancelScope, ended: anyio.Event, ready: anyio.Event
    ) -> None:
        try:
            with scope:
                async with node.build(self.network, self._discovery, self._event) as core:
                    if node.life == life:
                        self._check_identity(node, core.device_info.id)
                        node.ready = True
                    ready.set()
                    await anyio.sleep_forever()
        except Exception as error:
            if node.life == life:
                self.violation(f"{node.name} ended by itself: {error!r}".replace(str(self._disk.root), "~"))
        finally:
            if node.life == life:
                node.alive = node.ready = False
            ready.set()
            ended.set()

    def _check_identity(self, node: SimulatedNode, device_id: uuid.UUID) -> None:
        if node.device_id not in (None, device_id):
            self.violation(f"{node.name} came back as another device")
        node.device_id = device_id

    async def stop(self, node: SimulatedNode) -> None:
        """Stop a node in order."""
        self.log(f"stop {node.name}")
        node.scope.cancel()
        await node.ended.wait()

    def crash(self, node: SimulatedNode, *, power_cut: bool) -> None:
        """End a node's process here and now."""
        if not node.alive:
            return
        self.log(f"{'power cut at' if power_cut else 'kill'} {node.name}")
        node.alive = node.ready = False
        node.crashed = True
        node.vanish(self.network, self._discovery, silent=power_cut)
        before = node.folder
        node.life += 1
        self._disk.clone(before, node.folder, power_cut=power_cut)
        node.scope.cancel()

    def crash_soon(self, node: SimulatedNode, *, power_cut: bool, steps: int = -1, syncs: int = -1) -> None:
        """Crash a node before a later step of any task, or before a later sync of a file of its own."""

        def crash() -> None:
            self._steps_left = self._syncs_left = -1
            self.crash(node, power_cut=power_cut)

        self._victim = node
        self._steps_left, self._syncs_left, self._doomed = steps, syncs, crash

    def step(self) -> None:
        """Called before every step of every task."""
        if self._steps_left > 0:
            self._steps_left -= 1
            if not self._steps_left:
                self._doomed()

    def _synced(self, path: str) -> None:
        if self._syncs_left > 0 and path.startswith(str(self._victim.folder)):
            self._syncs_left -= 1
            if not self._syncs_left:
                self._doomed()

    # What is done with them

    async def pair(self, pairs: Iterable[tuple[SimulatedNode, SimulatedNode]]) -> None:
        """Pair nodes."""
        randomness = SeededRandomness(str(self.random.random()))
        for a, b in pairs:
            await pair(a.core, b.core, randomness)
            self._lanes.update({(x.name, y.name, p): _Lane() for x, y in ((a, b), (b, a)) for p in Priority})

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The names of devices that are paired, each two once."""
        return [(a, b) for a, b, priority in self._lanes if a < b and priority is Priority.NORMAL]

    def named(self, name: str) -> SimulatedNode:
        """A node by its name."""
        return next(node for node in self.nodes if node.name == name)

    async def send(self, sender: SimulatedNode, receiver: SimulatedNode, priority: Priority) -> None:
        """Have a node send one message, if it runs."""
        lane = self._lanes[sender.name, receiver.name, priority]
        async with lane.lock:
            life = sender.life
            if not sender.ready or receiver.device_id is None:
                return
            number = len(lane.tried)
            lane.tried.append(number)
            data = f"{sender.name} {int(priority)} {number}".encode()
            accepted = await self._on(
                sender, sender.core.send_message(receiver.device_id, PROTOCOL_NAME, data, priority=priority)
            )
            if accepted and sender.life == life:
                lane.accepted.append(number)

    async def revoke(self, node: SimulatedNode, other: SimulatedNode) -> None:
        """Have a node revoke another, if it runs."""
        if not node.ready or other.device_id is None:
            return
        self.revoking.add(frozenset((node.name, other.name)))
        self.log(f"{node.name} revokes {other.name}")
        if await self._on(node, node.core.revoke_device(other.device_id)):
            self._revoked.add((node.name, other.device_id))
            self.log(f"{node.name} has revoked {other.name}")

    async def _on(self, node: SimulatedNode, doing: Awaitable[Any]) -> bool:
        """Whether a node did something before it crashed."""
        life = node.life
        with anyio.move_on_after(SEND_TIMEOUT_S), suppress(NetworkingError):
            await doing
            return node.life == life and node.alive
        return False

    # The end

    async def settle(self) -> None:
        """End all trouble, and wait until everything is as it should be."""
        self._steps_left = self._syncs_left = -1
        self.log("heal")
        for a, b in self.pairs:
            link = self.network.link(self.named(a).peer_id, self.named(b).peer_id)
            link.delay_s, link.bytes_per_s = 0.0, None
        self.network.heal_all()
        for node in self.nodes:
            if not node.alive:
                await self.start(node)
        missing: list[str] = []
        with anyio.move_on_after(SETTLE_TIMEOUT_S):
            while missing := self._missing():  # noqa: ASYNC110 - virtual time costs nothing
                await anyio.sleep(1.0)
        for what in missing:
            self.violation(f"never: {what}")

    def _missing(self) -> list[str]:
        missing = []
        for a, b in self.pairs:
            if frozenset((a, b)) in self.revoking:
                continue
            one, other = self.named(a), self.named(b)
            sessions = [self._session(one, other), self._session(other, one)]
            if None in sessions or sessions[0] != sessions[1]:
                missing.append(f"{a} and {b} have one session")
            for x, y in ((one, other), (other, one)):
                if x.ready and y.device_id is not None and x.core.messages.outbox.has_messages(y.device_id):
                    missing.append(f"{x.name} has delivered all to {y.name}")
        return missing

    def _session(self, node: SimulatedNode, other: SimulatedNode) -> bytes | None:
        if not node.ready or other.device_id is None:
            return None
        with suppress(NetworkingError):
            state = node.core._registry.get(other.device_id)
            if isinstance(state, Connected):
                return state.live.session.keys.epoch_id
        return None

    async def check(self) -> None:
        """Check what every device has got, and that its logs are whole."""
        for node in self.nodes:
            if not node.ready:
                continue
            got: dict[tuple[str, Priority], list[int]] = {}
            names = {str(other.device_id): other.name for other in self.nodes}
            for sender, data in await node.recorder.records():
                name, priority, number = data.decode().split()
                if names.get(sender) != name:
                    self.violation(f"{node.name} has a message of {name} from somebody else")
                got.setdefault((name, Priority(int(priority))), []).append(int(number))
            for (a, b, way), lane in self._lanes.items():
                if b == node.name:
                    self._check_lane(a, b, way, lane, got.get((a, way), []))
            report = await node.core.audit.verify()
            for problem in report.problems:
                self.violation(f"{node.name}: the audit log is damaged: {problem}".replace(str(self._disk.root), "~"))
            for name, device_id in self._revoked:
                if name == node.name and str(node.core.remote_device(device_id).trust) != "revoked":
                    self.violation(f"{node.name} has forgotten that it revoked a device")

    def _check_lane(self, a: str, b: str, priority: Priority, lane: _Lane, got: list[int]) -> None:
        way = f"{a} to {b}, {priority.name.lower()}"
        self.log(f"delivered {way}", tried=len(lane.tried), accepted=len(lane.accepted), got=len(got))
        if len(set(got)) != len(got):
            self.violation(f"{way}: delivered twice: {sorted({n for n in got if got.count(n) > 1})}")
        elif got != sorted(got):
            self.violation(f"{way}: delivered out of order: {got}")
        if not set(got) <= set(lane.tried):
            self.violation(f"{way}: delivered what was never sent")
        lost = sorted(set(lane.accepted) - set(got))
        if lost and frozenset((a, b)) not in self.revoking:
            self.violation(f"{way}: accepted and lost: {lost}")


class ErrorsAreViolations(logging.Handler):
    """Turns what the program logs as an error into a violation."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record."""
        cause = "" if record.exc_info is None else f" ({record.exc_info[1]!r})"
        self.found.append(f"logged as an error: {record.getMessage()}{cause}")
