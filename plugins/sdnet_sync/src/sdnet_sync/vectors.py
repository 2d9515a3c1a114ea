"""Version vectors: how many batches of each author somebody has. An author that is not named counts as 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Vector", "ahead", "covers", "merged", "minimum"]

Vector = Mapping[bytes, int]
"""Author's device id (16 bytes) to the sequence number of its last batch."""


def covers(vector: Vector, other: Vector) -> bool:
    """Whether a vector has everything that the other one has."""
    return all(vector.get(author, 0) >= sequence for author, sequence in other.items())


def ahead(vector: Vector, other: Vector) -> dict[bytes, int]:
    """The part of a vector that the other one lacks."""
    return {author: sequence for author, sequence in vector.items() if sequence > other.get(author, 0)}


def merged(vector: Vector, *others: Vector) -> dict[bytes, int]:
    """The least vector that covers all of these."""
    result = dict(vector)
    for other in others:
        for author, sequence in other.items():
            if sequence > result.get(author, 0):
                result[author] = sequence
    return result


def minimum(vectors: Iterable[Vector]) -> dict[bytes, int]:
    """The greatest vector that all of these cover; empty for none."""
    result: dict[bytes, int] | None = None
    for vector in vectors:
        if result is None:
            result = dict(vector)
        else:
            result = {author: min(n, vector.get(author, 0)) for author, n in result.items() if author in vector}
    return result or {}
