"""What goes over the wire in ``/sdnet/introduction/1``: messages between the introducer and each of the two."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from sdnet_core import DeviceInfo
from sdnet_core.wire import Bytes16, Bytes32, Message

from ..messages import Addresses, Bytes64

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_VOUCHER_BYTES",
    "Accept",
    "Confirm",
    "Decline",
    "EndReason",
    "IntroductionMessage",
    "Offer",
    "Party",
    "Voucher",
    "Withdraw",
]

MAX_MESSAGE_BYTES = 8192
"""Longest message of the protocol."""
MAX_VOUCHER_BYTES = 1024

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Seconds = Annotated[int, Meta(ge=0, le=1 << 40)]


class EndReason(StrEnum):
    """Why an introduction does not come about."""

    REJECTED = "rejected"
    """A person said no."""
    NEVER = "never"
    """The device takes no introductions."""
    ALREADY = "already"
    """The device is paired with the other one already."""
    REVOKED = "revoked"
    """The device has revoked the other one: only a person with a code can undo that."""
    CONFLICT = "conflict"
    """Another device with the same identity is paired already."""
    BUSY = "busy"
    """Too many introductions wait at the device already."""
    EXPIRED = "expired"
    """Nobody answered, or a device could not be reached, in time."""
    CANCELLED = "cancelled"
    """The introducer gave up."""
    REPLAYED = "replayed"
    """The device has seen this introduction before."""
    FAILED = "failed"
    """A device could not store the pairing, or sent what makes no sense."""
    UNSUPPORTED = "unsupported"
    """A device takes no introductions: its pairing plugin is missing or too old, or it trusts the introducer less."""


class Party(Message, frozen=True, kw_only=True, tag=16):
    """One of the two devices, as the introducer knows it.

    :param name: what the introducer calls it.
    """

    device_id: Bytes16
    name: Name
    public_key: Bytes32

    def __post_init__(self) -> None:
        # Shown to the person of the other device.
        if not self.name.isprintable():
            raise ValueError("a device's name is printable text")


class Voucher(Message, frozen=True, kw_only=True, tag=17):
    """What the introducer signs.

    :param introducer: its device key.
    :param first: the device with the lower key.
    :param created_at: seconds since the epoch, by the introducer's clock.
    """

    introduction_id: Bytes16
    introducer: Bytes32
    first: Party
    second: Party
    created_at: Seconds
    expires_at: Seconds


class Offer(Message, frozen=True, kw_only=True, tag=1):
    """Introducer to both: these two should pair.

    :param voucher: an encoded `Voucher`.
    :param signature: the introducer's over it.
    """

    voucher: Annotated[bytes, Meta(max_length=MAX_VOUCHER_BYTES)]
    signature: Bytes64


class Accept(Message, frozen=True, kw_only=True, tag=2):
    """One of the two to the introducer, which passes it on unchanged: I want to.

    :param device: who I am.
    :param addresses: where I can be dialled, multiaddrs.
    :param ephemeral: X25519 public key, 32 bytes, for this introduction only.
    :param nonce: 32 random bytes.
    :param signature: by the device key over the voucher and all of this.
    """

    introduction_id: Bytes16
    device: DeviceInfo
    addresses: Addresses
    ephemeral: Bytes32
    nonce: Bytes32
    signature: Bytes64


class Decline(Message, frozen=True, kw_only=True, tag=3):
    """One of the two to the introducer: it does not come about."""

    introduction_id: Bytes16
    reason: EndReason


class Confirm(Message, frozen=True, kw_only=True, tag=4):
    """One of the two to the introducer, which passes it on unchanged: I have stored the pairing.

    :param mac: under a key from the new pairing root, which the introducer does not have.
    """

    introduction_id: Bytes16
    mac: Bytes32


class Withdraw(Message, frozen=True, kw_only=True, tag=5):
    """Introducer to one of the two: it does not come about."""

    introduction_id: Bytes16
    reason: EndReason


IntroductionMessage = Offer | Accept | Decline | Confirm | Withdraw
