"""Tasks that are begun from anywhere, and end with what they belong to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVarTuple

from anyio.abc import TaskGroup

__all__ = ["Tasks"]

Arguments = TypeVarTuple("Arguments")


class Tasks:
    """The tasks of something that is not over: before it has begun, and once it ends, none begins.

    A task that began while its group ends might never hear of the cancellation: on asyncio it is told only to those
    that were there. The group, and with it the node, would then never end.
    """

    def __init__(self) -> None:
        self._group: TaskGroup | None = None
        self._over = False

    @property
    def begun(self) -> bool:
        """Whether there is, or was, a group."""
        return self._group is not None

    @property
    def running(self) -> bool:
        """Whether a task may begin."""
        return self._group is not None and not self._over and not self._group.cancel_scope.cancel_called

    def begin(self, group: TaskGroup) -> None:
        """From now on tasks begin; they live in ``group``."""
        self._group, self._over = group, False

    def end(self) -> None:
        """None begins any more; those that there are end with their group."""
        self._over = True

    def cancel(self) -> None:
        """End them all, and none begins any more."""
        if self._group is not None:
            self._group.cancel_scope.cancel()

    def start(self, function: Callable[[*Arguments], Coroutine[Any, Any, Any]], *arguments: *Arguments) -> bool:
        """Begin a task.

        :returns: whether it was begun; not if this is over.
        """
        if not self.running:
            return False
        assert self._group is not None
        self._group.start_soon(function, *arguments)
        return True
