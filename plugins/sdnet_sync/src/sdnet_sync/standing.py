"""How a library stands after some commit: what every part of the plugin may know without asking the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .members import MembershipHistory
from .operations import GENESIS
from .vectors import Vector

__all__ = ["NO_HEAD", "Head", "View"]


@dataclass(frozen=True, slots=True)
class Head:
    """How far one author's chain goes here.

    :param hash: of its last batch.
    :param stamp: of its last operation.
    :param seen: what it had seen of others by then.
    :param base: batches up to this one are no longer in the log.
    :param written: its last batch that holds operations.
    """

    sequence: int = 0
    hash: bytes = GENESIS
    stamp: int = 0
    seen: Vector = field(default_factory=dict)
    base: int = 0
    written: int = 0


NO_HEAD = Head()


@dataclass(frozen=True, slots=True)
class View:
    """A library's standing after some commit; never changes.

    :param loading: a snapshot is being taken in.
    :param rebuild: what we hold is not what the others have agreed on; a snapshot is needed.
    :param root: fingerprint of all entries.
    """

    heads: Mapping[bytes, Head]
    members: MembershipHistory
    root: Callable[[], bytes]
    loading: bool
    rebuild: bool
    settings: Mapping[str, Mapping[str, Any]]
    unique: Mapping[str, tuple[str, ...]]
    name: str

    @property
    def vector(self) -> dict[bytes, int]:
        """How much we have of each author."""
        return {author: head.sequence for author, head in self.heads.items() if head.sequence}
