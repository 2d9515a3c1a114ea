"""The records that a node keeps for others, in memory, within bounds (pure)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from sdnet_core.discovery.dht_records import CLOCK_TOLERANCE_S, Record

__all__ = ["Budget", "RecordStore"]


@dataclass(slots=True)
class _Kept:
    record: Record
    owner: str


class RecordStore:
    """Keeps records until they expire.

    :param max_records: of all together.
    :param max_per_owner: of one network address. When there is no room, whoever has the most loses the oldest.
    """

    def __init__(self, *, max_records: int = 16_384, max_per_owner: int = 512) -> None:
        self._max_records = max_records
        self._max_per_owner = max_per_owner
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._of_owner: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, *, now: float) -> Record | None:
        """The record at a place, also one that was taken back.

        :param now: seconds since the epoch.
        """
        kept = self._kept.get(key)
        if kept is not None and kept.record.expires_at + CLOCK_TOLERANCE_S <= now:
            self._drop(key)
            return None
        return None if kept is None else kept.record

    def put(self, record: Record, *, owner: str, now: float) -> Record | None:
        """Keep a record that was checked.

        :param owner: the network address it came from.
        :returns: None if it is kept, else the one that is kept instead.
        """
        key = record.key
        before = self.get(key, now=now)
        if before is not None:
            if (before.sequence, before.signature) == (record.sequence, record.signature):
                return None
            # Of two with the same number every node keeps the same one.
            if (before.sequence, before.value) >= (record.sequence, record.value):
                return before
            self._drop(key)
        if self._of_owner[owner] >= self._max_per_owner:
            self._drop_oldest_of(owner)
        elif len(self._kept) >= self._max_records:
            self._drop_oldest_of(max(self._of_owner, key=self._of_owner.__getitem__))
        self._kept[key] = _Kept(record, owner)
        self._of_owner[owner] += 1
        return None

    def sweep(self, *, now: float) -> None:
        """Forget what has expired."""
        for key in [key for key, kept in self._kept.items() if kept.record.expires_at + CLOCK_TOLERANCE_S <= now]:
            self._drop(key)

    def _drop_oldest_of(self, owner: str) -> None:
        key = next((key for key, kept in self._kept.items() if kept.owner == owner), None)
        if key is not None:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key)
        self._of_owner[kept.owner] -= 1
        if not self._of_owner[kept.owner]:
            del self._of_owner[kept.owner]


class Budget:
    """What each network address may ask for: a token bucket each, for a bounded number of addresses.

    :param per_s: allowed in the long run.
    :param burst: allowed at once.
    :param max_owners: addresses remembered; the one that asked longest ago is forgotten.
    """

    def __init__(self, *, per_s: float, burst: float, max_owners: int = 4096) -> None:
        self._per_s = per_s
        self._burst = burst
        self._max_owners = max_owners
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, owner: str, now: float, cost: float = 1.0) -> bool:
        """Whether an address may have something more.

        :param now: monotonic seconds.
        """
        left, at = self._left.pop(owner, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_s)
        allowed = left >= cost
        self._left[owner] = (left - cost if allowed else left, now)
        if len(self._left) > self._max_owners:
            self._left.popitem(last=False)
        return allowed
