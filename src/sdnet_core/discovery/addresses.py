"""The addresses at which peers were met before, tried first when they are looked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar

import anyio
import msgspec

from sdnet_core.clock import Clock
from sdnet_core.discovery.candidates import Candidate, CandidateSink, DiscoverySource
from sdnet_core.discovery.multiaddrs import MAX_ADDRESSES_PER_PEER, MAX_MULTIADDR_CHARS, useful_addresses
from sdnet_core.wire import Message, decode, encode

__all__ = ["AddressBook", "KnownAddress", "KnownAddresses"]

MAX_BOOK_PEERS = 4096
MAX_BOOK_BYTES = 1 << 25
UNPROVEN_EXPIRY_S = 7 * 86400.0
"""An address that never worked is forgotten after this time."""
PROVEN_EXPIRY_S = 180 * 86400.0
"""An address that worked is forgotten this long after it last did, unless it is the last one of its peer."""

_Address = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MULTIADDR_CHARS)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]


class KnownAddress(Message, frozen=True, kw_only=True, tag=1):
    """One address of a peer.

    :param address: multiaddr.
    :param added_at: when it was first heard of, seconds since the epoch.
    :param succeeded_at: when a connection to it last succeeded; 0 if never.
    :param failed_at: when one last failed; 0 if never.
    """

    address: _Address
    added_at: _Seconds
    succeeded_at: _Seconds = 0.0
    failed_at: _Seconds = 0.0


class _PeerAddresses(Message, frozen=True, kw_only=True, tag=2):
    peer_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    addresses: Annotated[tuple[KnownAddress, ...], msgspec.Meta(max_length=MAX_ADDRESSES_PER_PEER)]


class _Book(Message, frozen=True, kw_only=True, tag=3):
    peers: Annotated[tuple[_PeerAddresses, ...], msgspec.Meta(max_length=MAX_BOOK_PEERS)]


class AddressBook:
    """Known addresses per peer: at most 16 each, the one that worked last in front.

    :param clock: dates successes and failures.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._peers: OrderedDict[str, dict[str, KnownAddress]] = OrderedDict()
        self._watchers: list[Callable[[str], None]] = []

    @property
    def peers(self) -> tuple[str, ...]:
        """The peers of whom an address is known."""
        return tuple(self._peers)

    def known(self, peer_id: str) -> tuple[KnownAddress, ...]:
        """Everything known of a peer, best address first."""
        return tuple(sorted(self._peers.get(peer_id, {}).values(), key=_rank))

    def addresses(self, peer_id: str) -> tuple[str, ...]:
        """The addresses of a peer, best first."""
        return tuple(known.address for known in self.known(peer_id))

    def add(self, peer_id: str, addresses: Iterable[str]) -> None:
        """Remember addresses that may work; useless ones are left out."""
        before = set(self._peers.get(peer_id, ()))
        for address in useful_addresses(peer_id, addresses):
            if address not in self._peers.get(peer_id, ()):
                self._put(peer_id, KnownAddress(address=address, added_at=self._clock.now()))
        if set(self._peers.get(peer_id, ())) != before:
            self._changed(peer_id)

    def succeeded(self, peer_id: str, address: str) -> None:
        """A connection to this address succeeded."""
        now = self._clock.now()
        for chosen in useful_addresses(peer_id, [address]):
            known = self._peers.get(peer_id, {}).get(chosen) or KnownAddress(address=chosen, added_at=now)
            self._put(peer_id, msgspec.structs.replace(known, succeeded_at=now))
            self._changed(peer_id)

    def failed(self, peer_id: str, address: str) -> None:
        """A connection to this address failed; an address not in the book stays out."""
        for chosen in useful_addresses(peer_id, [address]):
            known = self._peers.get(peer_id, {}).get(chosen)
            if known is not None:
                self._put(peer_id, msgspec.structs.replace(known, failed_at=self._clock.now()))
                self._changed(peer_id)

    def forget(self, peer_id: str) -> None:
        """Remove a peer."""
        if self._peers.pop(peer_id, None) is not None:
            self._changed(peer_id)

    def expire(self) -> None:
        """Forget what is too old; the best address that ever worked stays for as long as its peer does."""
        now = self._clock.now()
        for peer_id in tuple(self._peers):
            entry = self._peers[peer_id]
            best = self.known(peer_id)[0]
            for known in tuple(entry.values()):
                if known.succeeded_at:
                    expired = known is not best and now - known.succeeded_at > PROVEN_EXPIRY_S
                else:
                    expired = now - known.added_at > UNPROVEN_EXPIRY_S
                if expired:
                    del entry[known.address]
            if not entry:
                self.forget(peer_id)

    def watch(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call back with the peer id after each change.

        :returns: ends it.
        """
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    def to_bytes(self) -> bytes:
        """The book in its stored form."""
        return encode(
            _Book(
                peers=tuple(_PeerAddresses(peer_id=peer_id, addresses=self.known(peer_id)) for peer_id in self._peers)
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, clock: Clock) -> AddressBook:
        """Read a stored book.

        :raises SerializationError: that is not a book.
        """
        stored: _Book = decode(data, _Book, max_bytes=MAX_BOOK_BYTES)
        book = cls(clock)
        for peer in stored.peers:
            for known in peer.addresses:
                if useful_addresses(peer.peer_id, [known.address]) == (known.address,):
                    book._put(peer.peer_id, known)
        return book

    def _put(self, peer_id: str, known: KnownAddress) -> None:
        entry = self._peers.setdefault(peer_id, {})
        self._peers.move_to_end(peer_id)
        entry[known.address] = known
        if len(entry) > MAX_ADDRESSES_PER_PEER:
            del entry[max(entry.values(), key=_rank).address]
        if len(self._peers) > MAX_BOOK_PEERS:
            self._peers.popitem(last=False)

    def _changed(self, peer_id: str) -> None:
        for callback in tuple(self._watchers):
            callback(peer_id)


def _rank(known: KnownAddress) -> tuple[int, float, float]:
    """Best first: worked and not failed since, then never tried, then failed last; newest first within each."""
    if known.succeeded_at and known.succeeded_at >= known.failed_at:
        return (0, -known.succeeded_at, -known.added_at)
    if known.succeeded_at:
        return (1, -known.succeeded_at, -known.added_at)
    return (2 if not known.failed_at else 3, known.failed_at, -known.added_at)


class KnownAddresses(DiscoverySource):
    """The address book as a source: every peer in it is a candidate as long as it is in it."""

    name: ClassVar[str] = "known"

    def __init__(self, book: AddressBook) -> None:
        self._book = book
        self._changed: OrderedDict[str, None] = OrderedDict()
        self._wake = anyio.Event()

    async def run(self, sink: CandidateSink) -> None:
        unwatch = self._book.watch(self._note)
        try:
            self._changed = OrderedDict.fromkeys(self._book.peers)
            sink.ready()
            while True:
                while self._changed:
                    peer_id, _ = self._changed.popitem(last=False)
                    if addresses := self._book.addresses(peer_id):
                        sink.found(Candidate(peer_id, addresses, self.name))
                    else:
                        sink.lost(peer_id)
                self._wake = anyio.Event()
                await self._wake.wait()
        finally:
            unwatch()

    def _note(self, peer_id: str) -> None:
        self._changed[peer_id] = None
        self._wake.set()
