"""Virtual time: hours of timeouts and back-offs pass as fast as they compute."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    import trio

__all__ = ["VirtualClock", "run_in_virtual_time", "run_inline", "run_seeded"]

T = TypeVar("T")

_EPOCH = 1_700_000_000.0
"""The wall-clock time at which virtual time begins: 14 November 2023."""


class VirtualClock:
    """A node's clocks, driven by the event loop's: under `run_in_virtual_time` both stand still while work is done.

    :param wall_offset_s: change it to step the wall clock; the monotonic one does not follow.
    """

    def __init__(self) -> None:
        self.wall_offset_s = 0.0

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        return _EPOCH + self.wall_offset_s + self.monotonic()

    def monotonic(self) -> float:
        """The event loop's time, seconds."""
        return anyio.current_time()


async def run_inline(function: Callable[..., T], /, *args: Any) -> T:
    """Run a blocking function right here: the runner for virtual time, which does not wait for threads.

    :returns: what the function returned.
    """
    await anyio.lowlevel.checkpoint()
    return function(*args)


def run_in_virtual_time(function: Callable[..., Awaitable[T]], /, *args: Any) -> T:
    """Run an async function on trio, with a clock that jumps to the next deadline whenever every task waits.

    Nodes inside are made with ``clock=VirtualClock(), runner=run_inline``, which `linked_nodes` takes too: work in
    threads would seem to take for ever. There is no network in virtual time, only the one in memory.

    Example::

        async def a_day():
            async with linked_nodes(2, clock=VirtualClock(), runner=run_inline) as (a, b):
                await anyio.sleep(24 * 3600)

        run_in_virtual_time(a_day)  # takes a second

    :returns: what the function returned.
    """
    from trio.testing import MockClock

    clock = MockClock(autojump_threshold=0)
    return anyio.run(function, *args, backend="trio", backend_options={"clock": clock})


def run_seeded(
    function: Callable[..., Awaitable[T]], /, *args: Any, seed: int, each_step: Callable[[], None] | None = None
) -> T:
    """Run an async function in virtual time, with a scheduler that makes the same choices for the same seed.

    Whatever else is random or depends on the machine is the function's own affair: threads, hashes of strings, clocks.

    :param seed: for the order in which tasks run.
    :param each_step: called before every step of every task.
    :returns: what the function returned.
    """
    from trio.testing import MockClock

    instruments = [] if each_step is None else [_Steps(each_step)]
    options = {"clock": MockClock(autojump_threshold=0), "instruments": instruments}
    with _seeded_scheduler(seed):
        return anyio.run(function, *args, backend="trio", backend_options=options)


class _Steps:
    """A trio instrument that calls a function before each step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._function()


@contextmanager
def _seeded_scheduler(seed: int) -> Iterator[None]:
    """What pytest-trio does for hypothesis: sort what can run by age, then shuffle it with a seeded generator."""
    from trio._core import _run

    scheduler: Any = _run
    state = scheduler._r.getstate()
    allowed = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = allowed
        scheduler._r.setstate(state)
