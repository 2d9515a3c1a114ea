"""A link between two nodes that can be made slow, broken, or both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

from ..clock import Randomness
from ..swarm.memory import MemoryNetwork

__all__ = ["FaultyLink"]


class FaultyLink:
    """The link between two nodes of a memory network, usually from ``nodes.link(a, b)`` of `linked_nodes`.

    Streams are reliable, so that loss shows as delay while it is slight, and as a broken connection when it is not.

    :param network: the network.
    :param a: one node's peer id.
    :param b: the other's.
    """

    def __init__(self, network: MemoryNetwork, a: str, b: str) -> None:
        self._network = network
        self._peers = a, b

    @property
    def delay_s(self) -> float:
        """The time from one side to the other; a round trip takes twice that."""
        return self._network.link(*self._peers).delay_s

    @delay_s.setter
    def delay_s(self, value: float) -> None:
        self._network.link(*self._peers).delay_s = value

    @property
    def bytes_per_s(self) -> float | None:
        """The rate of each direction of each stream; None for no limit."""
        return self._network.link(*self._peers).bytes_per_s

    @bytes_per_s.setter
    def bytes_per_s(self, value: float | None) -> None:
        self._network.link(*self._peers).bytes_per_s = value

    def cut(self, *, silent: bool = False) -> None:
        """Cut the link until `heal`: what is under way breaks.

        :param silent: nobody is told and nothing gets through, like a pulled cable; what was sent arrives when the
            link heals.
        """
        self._network.cut(*self._peers, silent=silent)

    def heal(self) -> None:
        """Undo `cut`."""
        self._network.heal(*self._peers)

    @contextmanager
    def down(self, *, silent: bool = False) -> Iterator[None]:
        """Cut the link for the length of the block."""
        self.cut(silent=silent)
        try:
            yield
        finally:
            self.heal()

    @asynccontextmanager
    async def flapping(
        self, randomness: Randomness, *, up_s: tuple[float, float], down_s: tuple[float, float], silent: bool = False
    ) -> AsyncIterator[None]:
        """Cut the link again and again for the length of the block; it is whole afterwards.

        :param randomness: picks each length of time.
        :param up_s: the least and the longest time between two cuts.
        :param down_s: the least and the longest time of a cut.
        """

        async def flap() -> None:
            while True:
                await anyio.sleep(randomness.uniform(*up_s))
                with self.down(silent=silent):
                    await anyio.sleep(randomness.uniform(*down_s))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flap)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
