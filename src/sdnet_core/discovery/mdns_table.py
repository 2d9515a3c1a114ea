"""What was heard by mDNS, bounded against floods (pure)."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from sdnet_core.discovery.candidates import MAX_PEERS
from sdnet_core.discovery.mdns_messages import PeerRecord
from sdnet_core.discovery.multiaddrs import MAX_ADDRESSES_PER_PEER

__all__ = ["Heard", "PacketBudget", "PeerTable"]

MAX_INSTANCES_PER_SENDER = 64
MERGE_WINDOW_S = 0.2
"""Packets of one instance that come this close together are parts of one set (RFC 6762 section 10.2 would allow a
second; implementations send them back to back, and what is taken back is to be noticed soon)."""


_Key = tuple[str, str]
"""Instance name and link."""


@dataclass(slots=True)
class _Instance:
    peer_id: str
    addresses: tuple[str, ...]
    tags: frozenset[bytes]
    sender: str
    heard_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of a peer after a record was taken in.

    :param addresses: empty when the peer is gone.
    :param expires_at: when all of it has run out, monotonic seconds.
    :param is_new_instance: the peer was not known by that name before; it may have restarted.
    """

    peer_id: str
    addresses: tuple[str, ...]
    tags: frozenset[bytes]
    expires_at: float
    is_new_instance: bool = False


class PeerTable:
    """The instances heard of, per link. Each sender holds a limited share: one that floods displaces its own only."""

    def __init__(self) -> None:
        self._instances: OrderedDict[_Key, _Instance] = OrderedDict()
        self._by_peer: dict[str, OrderedDict[_Key, None]] = {}
        self._by_sender: dict[str, OrderedDict[_Key, None]] = {}

    def __len__(self) -> int:
        return len(self._instances)

    def observe(
        self, record: PeerRecord, addresses: tuple[str, ...], *, link: str, sender: str, now: float
    ) -> tuple[Heard, ...]:
        """Take in a record.

        :param addresses: those of the record that are useful; none means that the peer cannot be reached this way.
        :param link: where it was heard; what a peer says on one link says nothing of another.
        :param sender: IP address it came from.
        :param now: monotonic seconds.
        :returns: all that is known now of every peer whose records this touched.
        """
        key = (record.instance, link)
        before = self._instances.get(key)
        if record.ttl_s == 0 or not addresses:
            return () if before is None else (self.heard(self._remove(key)),)
        touched = []
        tags = record.tags
        heard_at = now
        if before is not None:
            self._remove(key)
            if before.peer_id != record.peer_id:
                touched.append(self.heard(before.peer_id))
            elif now - before.heard_at < MERGE_WINDOW_S:
                addresses = tuple(dict.fromkeys((*before.addresses, *addresses)))[:MAX_ADDRESSES_PER_PEER]
                tags |= before.tags
                heard_at = before.heard_at
        touched += [self.heard(peer_id) for peer_id in self._make_room(sender)]
        names = {instance for instance, _ in self._by_peer.get(record.peer_id, ())}
        is_new = record.instance not in names and (before is None or before.peer_id != record.peer_id)
        self._instances[key] = _Instance(record.peer_id, addresses, tags, sender, heard_at, now + record.ttl_s)
        self._by_peer.setdefault(record.peer_id, OrderedDict())[key] = None
        self._by_sender.setdefault(sender, OrderedDict())[key] = None
        touched.append(self.heard(record.peer_id, is_new_instance=is_new))
        return tuple(touched)

    def drop_link(self, link: str) -> tuple[Heard, ...]:
        """Forget what was heard on a link that is no more."""
        return self._remove_all([key for key in self._instances if key[1] == link])

    def expire(self, now: float) -> tuple[Heard, ...]:
        """Forget what has run out, and tell what remains of the peers concerned."""
        return self._remove_all([key for key, instance in self._instances.items() if instance.expires_at <= now])

    def _remove_all(self, keys: list[_Key]) -> tuple[Heard, ...]:
        return tuple(self.heard(peer_id) for peer_id in {self._remove(key) for key in keys})

    def heard(self, peer_id: str, *, is_new_instance: bool = False) -> Heard:
        """All that is known of a peer, what was heard last in front."""
        keys = self._by_peer.get(peer_id, ())
        instances = [self._instances[key] for key in reversed(tuple(keys))]
        addresses = dict.fromkeys(address for instance in instances for address in instance.addresses)
        return Heard(
            peer_id,
            tuple(addresses)[:MAX_ADDRESSES_PER_PEER],
            frozenset().union(*(instance.tags for instance in instances)),
            max((instance.expires_at for instance in instances), default=0.0),
            is_new_instance,
        )

    def _make_room(self, sender: str) -> set[str]:
        changed = set()
        own = self._by_sender.get(sender, ())
        while len(own) >= MAX_INSTANCES_PER_SENDER:
            changed.add(self._remove(next(iter(own))))
            own = self._by_sender.get(sender, ())
        while len(self._instances) >= MAX_PEERS:
            largest = max(self._by_sender.values(), key=len)
            changed.add(self._remove(next(iter(largest))))
        return changed

    def _remove(self, key: _Key) -> str:
        instance = self._instances.pop(key)
        for index, name in ((self._by_peer, instance.peer_id), (self._by_sender, instance.sender)):
            index[name].pop(key)
            if not index[name]:
                del index[name]
        return instance.peer_id


class PacketBudget:
    """How many packets are looked at: so many a second from one sender, and so many in all.

    :param per_sender: packets a second.
    :param in_all: packets a second.
    """

    def __init__(self, per_sender: int = 100, in_all: int = 1000) -> None:
        self._per_sender = per_sender
        self._in_all = in_all
        self._counts: dict[str, int] = {}
        self._total = 0
        self._second = -math.inf

    def take(self, sender: str, now: float) -> bool:
        """Whether one more packet from this sender may be looked at."""
        if now - self._second >= 1.0:
            self._second = now
            self._counts.clear()
            self._total = 0
        count = self._counts.get(sender, 0)
        if count >= self._per_sender or self._total >= self._in_all:
            return False
        self._counts[sender] = count + 1
        self._total += 1
        return True
