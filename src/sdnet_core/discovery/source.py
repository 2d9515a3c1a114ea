"""What a way of finding peers is: what it is told, and what it reports."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from sdnet_core.discovery.search import Rendezvous, WayState

__all__ = ["Announcement", "Candidate", "CandidateSink", "DiscoverySource"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Addresses at which a peer may be reached. Nothing here is proven: dialling it is.

    :param peer_id: libp2p peer id, base58.
    :param addresses: multiaddrs without a trailing ``/p2p``, best first.
    :param source: name of the source that found them.
    :param tags: what the peer announces beside its addresses, each at most 64 bytes.
    :param seen_at: when the source last heard of it, monotonic seconds.
    """

    peer_id: str
    addresses: tuple[str, ...]
    source: str
    tags: frozenset[bytes] = frozenset()
    seen_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What this node wants others to know.

    :param addresses: multiaddrs it can be dialled at.
    :param tags: at most 64 bytes each.
    :param records: what is published far away for those who share a secret with us.
    """

    addresses: tuple[str, ...] = ()
    tags: frozenset[bytes] = frozenset()
    records: frozenset[Rendezvous] = frozenset()


class CandidateSink(ABC):
    """Where a source reports what it finds. Its methods never block and never raise on what a peer sent."""

    @abstractmethod
    def ready(self) -> None:
        """The source has started. Implied by the first report."""

    @abstractmethod
    def found(self, candidate: Candidate, *, ttl_s: float = math.inf, fresh: bool = False) -> None:
        """A peer may be at these addresses; replaces what this source said of that peer before.

        :param ttl_s: how long this holds, seconds.
        :param fresh: tell subscribers even if they know all of it already, because the peer was heard of just now.
        """

    @abstractmethod
    def lost(self, peer_id: str) -> None:
        """The peer is gone, or this source does not know of it any more."""

    @abstractmethod
    def progress(self, state: WayState, detail: str = "") -> None:
        """Where this way of finding peers stands; without a word it is looking once it is ready.

        :param detail: for a person, one sentence.
        """


class DiscoverySource(ABC):
    """One way of finding peers, and of being found."""

    name: ClassVar[str]
    """Short, such as ``mdns``."""
    start_timeout_s: ClassVar[float] = 30.0
    """A source that has not said :meth:`CandidateSink.ready` within this time is taken to hang and is restarted."""

    @abstractmethod
    async def run(self, sink: CandidateSink) -> None:
        """Look for peers, and announce this node, until cancelled.

        Called again after it raised. Returning means that there is nothing to look for any more. On cancellation it
        withdraws what it announced, in bounded time.
        """

    def announce(self, announcement: Announcement) -> None:  # noqa: B027 - a source that only looks needs none
        """Announce this from now on, instead of what was said before. Called at any time; must not block."""

    def seek(self, secrets: frozenset[bytes]) -> None:  # noqa: B027 - a source that hears all it can needs none
        """Look for who publishes under these secrets (`Announcement.records`), until told otherwise.

        Called at any time; must not block.
        """

    def refresh(self) -> None:  # noqa: B027 - a source that is told of everything needs none
        """Look again now, because somebody waits for it. Called at any time; must not block."""
