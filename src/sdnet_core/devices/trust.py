"""How far a device is trusted, and what that lets it do."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import IntEnum, StrEnum

__all__ = ["Access", "RemoteDevice", "Trust"]


class Access(IntEnum):
    """The least trust a peer needs to open a protocol."""

    STRANGER = 0
    """Anybody, before pairing. The stream is encrypted by Noise only; the handler bounds everything itself."""
    VERIFIED = 1
    """A paired device, also one whose sensitive operations a person approves one by one."""
    TRUSTED = 2
    """A paired device that is trusted; a new pairing is."""


class Trust(StrEnum):
    """How far a paired device is trusted."""

    TRUSTED = "trusted"
    VERIFIED = "verified"
    """Sensitive operations ask a person first."""
    EXPIRED = "expired"
    """Must be paired again, for instance because it has forgotten us."""
    REVOKED = "revoked"
    """Never again, unless a person pairs it anew."""

    @property
    def access(self) -> Access | None:
        """What a device with this trust may open; None for no session at all."""
        return {Trust.TRUSTED: Access.TRUSTED, Trust.VERIFIED: Access.VERIFIED}.get(self)


@dataclass(frozen=True, slots=True)
class RemoteDevice:
    """A paired device, as plugins see it.

    :param device_id: its UUID.
    :param peer_id: its libp2p peer id.
    :param pairing_id: changes when the two devices pair anew.
    :param connected: whether a proven session to it exists now.
    """

    device_id: uuid.UUID
    name: str
    os: str
    peer_id: str
    pairing_id: uuid.UUID
    trust: Trust
    connected: bool
