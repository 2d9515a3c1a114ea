"""Who may do what in a library, at any point of its history (pure).

Roles are given and taken by signed operations. Whether a batch was allowed is decided by what its author had seen:
somebody who wrote before hearing of its removal was allowed to. So that nobody can pretend for ever not to have heard,
a removal names the last batch that counts; a later one counts only if a writer in good standing had taken it before,
which that writer says by building on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .operations import Membership, Role
from .vectors import Vector

__all__ = ["Member", "MembershipHistory", "RoleWrite"]


@dataclass(frozen=True, slots=True)
class RoleWrite:
    """One `Membership` operation in its place.

    :param seen: what its author had seen, its own batches before this one included.
    """

    author: bytes
    sequence: int
    seen: Vector
    operation: Membership

    def known_to(self, seen: Vector) -> bool:
        """Whether somebody who has seen so much knows of it."""
        return self.sequence <= seen.get(self.author, 0)


@dataclass(frozen=True, slots=True)
class Member:
    """A device's present standing."""

    device: bytes
    public_key: bytes
    name: str
    role: Role


@dataclass(slots=True)
class MembershipHistory:
    """All that was ever decided about members.

    :param founder: device id of the one who made the library; an owner until somebody says otherwise.
    :param founder_key: its public key.
    :ivar vouched: batches of devices that count in spite of a later removal, because a writer had taken them.
    """

    founder: bytes
    founder_key: bytes
    writes: list[RoleWrite] = field(default_factory=list)
    vouched: dict[bytes, int] = field(default_factory=dict)
    _cache: dict[tuple[bytes, tuple[int, ...]], Role] = field(default_factory=dict)
    _authors: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._authors = sorted({write.author for write in self.writes})

    def copy(self) -> MembershipHistory:
        """A copy to which can be added."""
        return MembershipHistory(self.founder, self.founder_key, list(self.writes), dict(self.vouched))

    def add(self, writes: Iterable[RoleWrite]) -> None:
        """Take in further decisions."""
        self.writes += writes
        self._authors = sorted({write.author for write in self.writes})
        self._cache.clear()

    def role_at(self, device: bytes, seen: Vector) -> Role:
        """A device's role as known to somebody who has seen so much.

        Of decisions that had not seen each other, the strictest holds.
        """
        key = (device, tuple(seen.get(author, 0) for author in self._authors))
        role = self._cache.get(key)
        if role is None:
            if len(self._cache) > 4096:
                self._cache.clear()
            role = self._cache[key] = self._role(device, [w for w in self.writes if w.known_to(seen)])
        return role

    def role(self, device: bytes) -> Role:
        """A device's role as far as we know."""
        return self._role(device, self.writes)

    def _role(self, device: bytes, known: list[RoleWrite]) -> Role:
        about = [write for write in known if write.operation.device == device]
        if not about:
            return Role.OWNER if device == self.founder else Role.NONE
        return min(write.operation.role for write in _latest(about))

    def barred(self, device: bytes, sequence: int, seen: Vector, needed: Role) -> bool:
        """Whether a batch comes after its author lost the needed role, though the author says it knew nothing of it."""
        if sequence <= self.vouched.get(device, 0):
            return False
        return any(
            write.operation.device == device
            and write.operation.role < needed
            and sequence > write.operation.through
            and write.author != device
            and not write.known_to(seen)
            for write in self.writes
        )

    def public_key(self, device: bytes) -> bytes | None:
        """The key of a device that is or was a member."""
        if device == self.founder:
            return self.founder_key
        return next((w.operation.public_key for w in self.writes if w.operation.device == device), None)

    def members(self) -> list[Member]:
        """Those who are members now, by device id."""
        devices = {self.founder, *(write.operation.device for write in self.writes)}
        found = []
        for device in sorted(devices):
            role = self.role(device)
            if role > Role.NONE:
                key = self.public_key(device)
                assert key is not None
                found.append(Member(device, key, self._name(device), role))
        return found

    def _name(self, device: bytes) -> str:
        about = [write for write in self.writes if write.operation.device == device]
        return _latest(about)[-1].operation.name if about else ""


def _latest(writes: list[RoleWrite]) -> list[RoleWrite]:
    """Those that no other one had seen, in an order that is the same everywhere."""
    latest = [write for write in writes if not any(write is not other and _precedes(write, other) for other in writes)]
    return sorted(latest, key=lambda write: (write.author, write.sequence))


def _precedes(write: RoleWrite, other: RoleWrite) -> bool:
    if write.author == other.author:
        return write.sequence < other.sequence
    return write.known_to(other.seen)
