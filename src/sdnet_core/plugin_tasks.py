"""What runs for one plugin, so that it can be ended, and how often it failed, so that it is noticed in time."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import anyio

from .clock import Clock

__all__ = ["FailureBudget", "PluginTasks", "count_tasks"]


class PluginTasks:
    """The blocks of code that run for one plugin: its services, its event pump, its handlers' streams."""

    def __init__(self) -> None:
        self._roots: dict[anyio.CancelScope, int] = {}
        self._ended = anyio.Event()
        self._ended.set()
        self.stopped = False

    @contextmanager
    def running(self) -> Iterator[anyio.CancelScope]:
        """Run a block for the plugin. It is cancelled when the plugin is stopped, also one that begins after that.

        :returns: the scope; ``cancelled_caught`` says afterwards whether the plugin was stopped in mid-block.
        """
        with anyio.CancelScope() as scope:
            self._roots[scope] = anyio.get_current_task().id
            if self._ended.is_set():
                self._ended = anyio.Event()
            if self.stopped:
                scope.cancel()
            try:
                yield scope
            finally:
                del self._roots[scope]
                if not self._roots:
                    self._ended.set()

    def stop(self) -> None:
        """Cancel everything; does not wait."""
        self.stopped = True
        for scope in tuple(self._roots):
            scope.cancel()

    async def wait_ended(self, timeout_s: float) -> bool:
        """Wait until nothing runs.

        :returns: whether that came about in time: a task that shields itself against cancellation is not ended.
        """
        with anyio.move_on_after(timeout_s):
            await self._ended.wait()
        return not self._roots

    @property
    def roots(self) -> tuple[int, ...]:
        """The ids of the tasks that the blocks run in."""
        return tuple(self._roots.values())


def count_tasks(roots: dict[str, Iterable[int]]) -> dict[str, int]:
    """How many tasks there are below each plugin's own, theirs included.

    :param roots: ids of tasks, by plugin.
    """
    children: dict[int | None, list[int]] = defaultdict(list)
    for task in anyio.get_running_tasks():
        children[task.parent_id].append(task.id)
    counts = {}
    for plugin, ids in roots.items():
        seen: set[int] = set()
        waiting = list(ids)
        while waiting:
            task_id = waiting.pop()
            if task_id not in seen:
                seen.add(task_id)
                waiting += children[task_id]
        counts[plugin] = len(seen)
    return counts


class FailureBudget:
    """Counts something in a sliding window.

    :param most: how many within the window are still borne.
    """

    def __init__(self, clock: Clock, *, most: int, window_s: float) -> None:
        self._clock = clock
        self._most = most
        self._window_s = window_s
        self._times: deque[float] = deque(maxlen=most + 1)

    def spend(self) -> bool:
        """Count one.

        :returns: whether that was one too many.
        """
        now = self._clock.monotonic()
        self._times.append(now)
        return len(self._times) > self._most and now - self._times[0] <= self._window_s
