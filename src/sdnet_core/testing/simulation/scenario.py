"""What befalls a simulated network: chosen by the seed, and run."""

from __future__ import annotations

import gc
import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from ... import node_plugins
from ...devices import outbox, sessions
from ...devices.delivery import Priority
from ...session import Suite
from ..clock import run_seeded
from .disk import SimulatedDisk
from .node import SimulatedNode
from .world import ErrorsAreViolations, World

__all__ = ["Outcome", "replaced", "run_seed"]

DAY_S = 24 * 3600.0
_MONTHS_EVERY = 12
"""One seed in so many simulates months without trouble instead of minutes full of it."""
_CROWD_EVERY = 40
"""One seed in so many simulates a larger network."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one seed.

    :param trace: what happened, a line each.
    :param violations: what must not happen and did; empty if all is well.
    """

    seed: int
    trace: tuple[str, ...]
    violations: tuple[str, ...]

    @property
    def text(self) -> str:
        """The trace as one text."""
        return "\n".join(self.trace) + "\n"


def run_seed(seed: int, *, nodes: int | None = None, folder: Path | None = None) -> Outcome:
    """Simulate one network.

    :param nodes: how many devices; the seed decides when None.
    :param folder: where the disks lie meanwhile; a file system in memory if there is one.
    """
    if folder is None:
        shared = Path("/dev/shm")
        folder = shared if shared.is_dir() else Path(tempfile.gettempdir())
    root = Path(tempfile.mkdtemp(prefix="sdnet-simulation-", dir=folder))
    disk = SimulatedDisk(root)
    worlds: list[World] = []

    def step() -> None:
        if worlds:
            worlds[0].step()

    try:
        with _quiet() as errors, disk.mounted(), _same_everywhere():
            run_seeded(_simulate, seed, nodes, disk, worlds, seed=seed, each_step=step)
        world = worlds[0]
        for what in errors.found:
            world.violations.append(what.replace(str(root), "~"))
        return Outcome(seed, tuple(world.trace), tuple(world.violations))
    finally:
        shutil.rmtree(root)


@contextmanager
def _quiet() -> Iterator[ErrorsAreViolations]:
    """Collect errors instead of showing them, and have no garbage collected at times of its own choice."""
    errors = ErrorsAreViolations()
    logger = logging.getLogger("sdnet_core")
    propagate, level = logger.propagate, logger.level
    logger.addHandler(errors)
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield errors
    finally:
        logger.removeHandler(errors)
        logger.propagate = propagate
        logger.setLevel(level)
        if was_enabled:
            gc.enable()
        gc.collect()


@contextmanager
def _same_everywhere() -> Iterator[None]:
    """Measure nothing of this machine, and wake up only for what is due."""
    with (
        replaced(sessions, "suites_by_speed", lambda: tuple(Suite)),
        replaced(outbox, "MAX_LOOK_S", 3600.0),
        replaced(node_plugins, "TASK_CHECK_INTERVAL_S", 3600.0),
    ):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give a module or a class another attribute for the length of the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


async def _simulate(seed: int, nodes: int | None, disk: SimulatedDisk, worlds: list[World]) -> None:
    calm = nodes is None and seed % _MONTHS_EVERY == _MONTHS_EVERY - 1
    async with anyio.create_task_group() as tasks:
        settings: dict[str, dict[str, Any]] = {"connections": {"reconnect_min_s": 0.5, "reconnect_max_s": 60.0}}
        if calm:
            settings["connections"]["keepalive_interval_s"] = 4 * 3600.0
        world = World(seed, disk, tasks, nodes=1, settings=settings)
        count = nodes or (2 if calm else _count(world, seed))
        world = World(seed, disk, tasks, nodes=count, settings=settings)
        worlds.append(world)
        for node in world.nodes:
            await world.start(node)
        await world.pair(_who_knows_whom(world))
        if calm:
            await _months(world)
        else:
            await _trouble(world)
        await world.settle()
        await world.check()
        for node in world.nodes:
            if node.alive:
                await world.stop(node)
        tasks.cancel_scope.cancel()


def _count(world: World, seed: int) -> int:
    if seed % _CROWD_EVERY == _CROWD_EVERY - 1:
        return world.random.randint(6, 10)
    return world.random.choice([2, 2, 2, 3, 3, 4])


def _who_knows_whom(world: World) -> list[tuple[SimulatedNode, SimulatedNode]]:
    if len(world.nodes) <= 5:
        return list(itertools.combinations(world.nodes, 2))
    # A ring and some more, so that work grows with the devices and not with their square.
    ring = [(node, world.nodes[(index + 1) % len(world.nodes)]) for index, node in enumerate(world.nodes)]
    across = len(world.nodes) // 2
    return ring + [(world.nodes[index], world.nodes[index + across]) for index in range(0, across, 3)]


async def _months(world: World) -> None:
    """Two devices stay connected, and renew their keys every day; not one connection is lost."""
    a, b = world.nodes
    days = world.random.randint(30, 100)
    await anyio.sleep(1)
    world.no_losses = True
    for _ in range(days):
        await anyio.sleep(world.random.uniform(0.5, 1.5) * DAY_S)
        await world.send(a, b, Priority.NORMAL)
        await world.send(b, a, Priority.NORMAL)
        if world.random.random() < 0.2:
            node = world.random.choice([a, b])
            node.clock.wall_offset_s += world.random.choice([-3600, 3600])
            world.log(f"the clock of {node.name} is set")
    await anyio.sleep(60)
    world.no_losses = False


async def _trouble(world: World) -> None:
    """Minutes full of messages and of everything that can go wrong."""
    rng = world.random
    async with anyio.create_task_group() as tasks:
        for _ in range(rng.randint(8, 24)):
            await anyio.sleep(rng.choice([0.0, rng.uniform(0, 0.05), rng.uniform(0, 5), rng.uniform(0, 90)]))
            a, b = rng.choice(world.pairs)
            one, other = world.named(a), world.named(b)
            if rng.random() < 0.5:
                one, other = other, one
            match rng.choices(range(9), weights=[40, 8, 6, 14, 10, 3, 4, 4, 3])[0]:
                case 0:
                    tasks.start_soon(_burst, world, one, other, rng.choice(list(Priority)), rng.randint(1, 8))
                case 1:
                    tasks.start_soon(_cut, world, one, other, rng.random() < 0.6, rng.uniform(0.01, 300))
                case 2:
                    world.network.link(one.peer_id, other.peer_id).delay_s = rng.choice([0.0, 0.01, 0.2, 2.0])
                case 3:
                    tasks.start_soon(_crash, world, one, rng.random() < 0.5)
                case 4:
                    # Messages under way, and the end of their sender or receiver in the middle of it.
                    tasks.start_soon(_burst, world, one, other, Priority.NORMAL, rng.randint(2, 8))
                    tasks.start_soon(_crash, world, rng.choice([one, other]), rng.random() < 0.5)
                case 5:
                    tasks.start_soon(_restart, world, one)
                case 6:
                    one.clock.wall_offset_s += rng.choice([-3600.0, 3600.0])
                    world.log(f"the clock of {one.name} is set")
                case 7:
                    one.clock.slept_s += rng.choice([100.0, 3600.0, 25 * 3600.0])
                    world.log(f"{one.name} has slept")
                case 8 if rng.random() < 0.3:
                    tasks.start_soon(world.revoke, one, other)
                case _:
                    # Both lose the connection at the same moment, and dial at the same moment.
                    await _cut(world, one, other, False, 0.0)


async def _burst(world: World, sender: SimulatedNode, receiver: SimulatedNode, priority: Priority, count: int) -> None:
    for _ in range(count):
        await world.send(sender, receiver, priority)


async def _cut(world: World, one: SimulatedNode, other: SimulatedNode, silent: bool, duration_s: float) -> None:
    world.log(f"cut {one.name} {other.name}", silent=silent, duration_s=duration_s)
    world.network.cut(one.peer_id, other.peer_id, silent=silent)
    await anyio.sleep(duration_s)
    world.network.heal(one.peer_id, other.peer_id)


async def _crash(world: World, node: SimulatedNode, power_cut: bool) -> None:
    rng = world.random
    if rng.random() < 0.3:
        world.crash_soon(node, power_cut=power_cut, syncs=rng.randint(1, 6))
    else:
        world.crash_soon(node, power_cut=power_cut, steps=rng.randint(1, 400))
    delay_s = rng.choice([rng.uniform(0, 1), rng.uniform(0, 60)])
    again = rng.random() < 0.2
    with anyio.move_on_after(60):
        await node.ended.wait()
    world.crash(node, power_cut=power_cut)
    await anyio.sleep(delay_s)
    if not node.alive:
        if again:
            world.crash_soon(node, power_cut=power_cut, steps=rng.randint(1, 200))
        await world.start(node)


async def _restart(world: World, node: SimulatedNode) -> None:
    if node.ready:
        await world.stop(node)
        await anyio.sleep(world.random.uniform(0, 10))
    if not node.alive:
        await world.start(node)
