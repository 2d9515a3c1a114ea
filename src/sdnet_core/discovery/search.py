"""What a search beyond the local network needs: secrets to meet under, and where each way of looking stands (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sdnet_core.errors import InvalidRequestError

__all__ = ["SECRET_BYTES", "Acquaintance", "Rendezvous", "Way", "WayState"]

SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """What is published for those who share a secret with this node.

    :param secret: 32 bytes; whoever has it can find and read the record, and also replace it.
    :param tags: told beside the addresses.
    """

    secret: bytes = field(repr=False)
    tags: frozenset[bytes] = frozenset()

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise InvalidRequestError(f"The secret of a record has {SECRET_BYTES} bytes.")


class WayState(StrEnum):
    """Where a way of finding peers stands."""

    STARTING = "starting"
    LOOKING = "looking"
    OFF = "off"
    """It has nothing to look with, such as no meeting point."""
    UNREACHABLE = "unreachable"
    """It needs others, and none of them answers now; it goes on trying."""
    FAILED = "failed"
    """It has failed and is started again by itself."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way of finding peers.

    :param name: ``mdns`` for the local network, ``dht`` for meeting points and what they know.
    :param detail: more for a person, one sentence; empty if there is none.
    """

    name: str
    state: WayState = WayState.STARTING
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """A peer that this node shares two secrets with for good.

    :param ours: under which we publish for it, 32 bytes.
    :param theirs: under which it publishes for us, 32 bytes.
    :param wanted: we look for it now.
    """

    peer_id: str
    ours: bytes = field(repr=False)
    theirs: bytes = field(repr=False)
    wanted: bool = False
