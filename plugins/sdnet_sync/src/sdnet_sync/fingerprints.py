"""Fingerprints of ranges of a library: sums of entry hashes, kept up to date with every change (pure).

Entry keys are hashes, so they spread evenly: the first 14 bits of a key name its *leaf*. Two replicas that sum up
to the same are equal (they find accidents; attacks are answered by the signed chains). Those that do not are compared
range by range: 128 ranges of 128 leaves, then leaves, then entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from .limits import LEAF_BITS, LEAVES

__all__ = ["LEAVES_PER_RANGE", "RANGES", "LeafSums", "entry_hash", "leaf_of"]

RANGES = 128
"""Ranges of the whole library."""
LEAVES_PER_RANGE = LEAVES // RANGES
_MODULUS = 1 << 128


def entry_hash(state: bytes) -> bytes:
    """The hash of an entry's encoded state, 16 bytes."""
    return hashlib.blake2b(state, digest_size=16, person=b"sdnet/state/v1").digest()


def leaf_of(key: bytes) -> int:
    """The leaf that an entry's key falls into."""
    return int.from_bytes(key[:2], "big") >> (16 - LEAF_BITS)


class LeafSums:
    """The sums of all leaves.

    :param sums: by leaf, as they were kept.
    """

    __slots__ = ("sums",)

    def __init__(self, sums: Mapping[int, int] | None = None) -> None:
        self.sums = dict(sums or {})

    def change(self, key: bytes, old: bytes | None, new: bytes | None) -> int:
        """Account for an entry that changed.

        :param old: its hash before; None if it was not there.
        :param new: its hash now; None if it is gone.
        :returns: its leaf.
        """
        leaf = leaf_of(key)
        total = self.sums.get(leaf, 0)
        if old is not None:
            total -= int.from_bytes(old, "big")
        if new is not None:
            total += int.from_bytes(new, "big")
        self.sums[leaf] = total % _MODULUS
        return leaf

    def root(self) -> bytes:
        """The fingerprint of everything, 16 bytes."""
        digest = hashlib.blake2b(digest_size=16, person=b"sdnet/root/v1")
        for total in self.ranges():
            digest.update(total)
        return digest.digest()

    def ranges(self) -> list[bytes]:
        """The fingerprints of all ranges, 16 bytes each."""
        totals = [0] * RANGES
        for leaf, total in list(self.sums.items()):  # a writer may be adding to it in its thread
            # Mixed with the leaf's number, so that entries that change places do not cancel out.
            totals[leaf // LEAVES_PER_RANGE] += total * (2 * leaf + 1)
        return [(total % _MODULUS).to_bytes(16, "big") for total in totals]

    def leaves(self, ranges: Iterable[int]) -> list[bytes]:
        """The sums of all leaves in some ranges, one after the other."""
        return [
            self.sums.get(leaf, 0).to_bytes(16, "big")
            for number in ranges
            for leaf in range(number * LEAVES_PER_RANGE, (number + 1) * LEAVES_PER_RANGE)
        ]
