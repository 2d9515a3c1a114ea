"""Kademlia without I/O: distances, the table of nodes, and the course of one lookup (pure).

P. Maymounkov, D. Mazières: Kademlia, 2002. Nodes and records lie in one space of 256 bits; what is nearest to a record
by XOR keeps it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sdnet_core.discovery.multiaddrs import parse_multiaddr

__all__ = ["ALPHA", "Contact", "K", "Lookup", "RoutingTable", "distance", "node_id"]

K = 20
"""Nodes that a bucket holds, that an answer names, and that a lookup ends with."""
ALPHA = 3
"""Questions of one lookup under way at a time."""
MAX_QUESTIONS = 80
"""Nodes asked in one lookup; a lying node could name new ones for ever."""
MAX_PER_IP = 8
"""Nodes of one IP address in the table."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A node that serves.

    :param addresses: multiaddrs without a trailing ``/p2p``.
    """

    peer_id: str
    addresses: tuple[str, ...]


def node_id(peer_id: str) -> bytes:
    """Where a node lies, 32 bytes."""
    return hashlib.sha256(b"sdnet/dht/node/v1\0" + peer_id.encode()).digest()


def distance(a: bytes, b: bytes) -> int:
    """How far two places are apart."""
    return int.from_bytes(a, "big") ^ int.from_bytes(b, "big")


class RoutingTable:
    """The nodes a node knows, more of those that are near than of those far away.

    :param peer_id: of the node whose table it is.
    """

    def __init__(self, peer_id: str) -> None:
        self._own = node_id(peer_id)
        self._peer_id = peer_id
        self._buckets: dict[int, OrderedDict[str, Contact]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def __iter__(self) -> Iterator[Contact]:
        return iter([contact for bucket in self._buckets.values() for contact in bucket.values()])

    def add(self, contact: Contact) -> bool:
        """Note that a node answers; one that is known becomes the most recent. A full bucket keeps what it has.

        :returns: whether it is in the table now.
        """
        if contact.peer_id == self._peer_id:
            return False
        bucket = self._buckets.setdefault(distance(self._own, node_id(contact.peer_id)).bit_length(), OrderedDict())
        if contact.peer_id not in bucket:
            if len(bucket) >= K or self._of_ip(contact) >= MAX_PER_IP:
                return False
        bucket[contact.peer_id] = contact
        bucket.move_to_end(contact.peer_id)
        return True

    def remove(self, peer_id: str) -> None:
        """A node does not answer any more."""
        number = distance(self._own, node_id(peer_id)).bit_length()
        bucket = self._buckets.get(number, OrderedDict())
        bucket.pop(peer_id, None)
        if not bucket:
            self._buckets.pop(number, None)

    def closest(self, target: bytes, count: int = K) -> list[Contact]:
        """The nodes nearest to a place, nearest first."""
        contacts = [contact for bucket in self._buckets.values() for contact in bucket.values()]
        return sorted(contacts, key=lambda contact: distance(target, node_id(contact.peer_id)))[:count]

    def _of_ip(self, contact: Contact) -> int:
        ips = _ips(contact)
        counts = Counter(
            ip for bucket in self._buckets.values() for other in bucket.values() for ip in _ips(other) if ip in ips
        )
        return max(counts.values(), default=0)


def _ips(contact: Contact) -> frozenset[str]:
    found = set()
    for address in contact.addresses:
        try:
            ip = parse_multiaddr(address).ip
        except ValueError:
            continue
        if ip is not None:
            found.add(str(ip))
    return frozenset(found)


@dataclass(slots=True)
class _Known:
    contact: Contact
    distance: int
    asked: bool = False
    answered: bool = False
    failed: bool = False


@dataclass(slots=True)
class Lookup:
    """The search for the nodes nearest to a place.

    :param target: the place, 32 bytes.
    :param own: our own peer id, which is never asked.
    """

    target: bytes
    own: str
    questions: int = 0
    _known: dict[str, _Known] = field(default_factory=dict)
    _running: int = 0

    def add(self, contacts: Iterable[Contact]) -> None:
        """Nodes that somebody named; at most `K` of them count."""
        for contact in list(contacts)[:K]:
            if contact.peer_id != self.own and contact.addresses and contact.peer_id not in self._known:
                where = distance(self.target, node_id(contact.peer_id))
                self._known[contact.peer_id] = _Known(contact, where)

    def take(self) -> Contact | None:
        """The next node to ask now; None if there is none, or enough are being asked."""
        if self._running >= ALPHA or self.questions >= MAX_QUESTIONS:
            return None
        for known in self._best():
            if not known.asked:
                known.asked = True
                self.questions += 1
                self._running += 1
                return known.contact
        return None

    def answered(self, peer_id: str, closer: Iterable[Contact]) -> None:
        """A node has answered."""
        self._running -= 1
        self._known[peer_id].answered = True
        self.add(closer)

    def failed(self, peer_id: str) -> None:
        """A node has not answered."""
        self._running -= 1
        self._known[peer_id].failed = True

    @property
    def done(self) -> bool:
        """Whether nobody is left to ask."""
        if self._running:
            return False
        return self.questions >= MAX_QUESTIONS or all(known.asked for known in self._best())

    def closest(self) -> list[Contact]:
        """The nodes that have answered, nearest first."""
        found = [known for known in self._known.values() if known.answered]
        return [known.contact for known in sorted(found, key=lambda known: known.distance)[:K]]

    def _best(self) -> list[_Known]:
        alive = [known for known in self._known.values() if not known.failed]
        return sorted(alive, key=lambda known: known.distance)[:K]
