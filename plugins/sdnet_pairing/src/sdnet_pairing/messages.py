"""What goes over the wire in ``/sdnet/pairing/1``.

Five messages make a pairing; what proves or tells anything after the first lies in a sealed box, whose plaintext is
one of the ``…Payload`` structs. The transcript and keys that bind them are in `sdnet_pairing.keys`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from sdnet_core import DeviceInfo
from sdnet_core.wire import Bytes16, Bytes32, Message

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Challenge",
    "ChallengePayload",
    "Complete",
    "CompletePayload",
    "Confirm",
    "ConfirmPayload",
    "PairingRequest",
    "Refusal",
    "RefusalReason",
    "Response",
    "ResponsePayload",
    "is_announceable",
]

MAX_MESSAGE_BYTES = 8192
"""Longest message either side accepts."""

Bytes64 = Annotated[bytes, Meta(min_length=64, max_length=64)]
Box = Annotated[bytes, Meta(min_length=17, max_length=6144)]
Number = Annotated[int, Meta(ge=1, le=65535)]
Offer = Annotated[tuple[Number, ...], Meta(min_length=1, max_length=8)]
MAX_ADDRESS_CHARACTERS = 256
_ADDRESS_PATTERN = r"^/[\x21-\x7e]+\Z"
Address = Annotated[str, Meta(max_length=MAX_ADDRESS_CHARACTERS, pattern=_ADDRESS_PATTERN)]
Addresses = Annotated[tuple[Address, ...], Meta(max_length=16)]


class RefusalReason(StrEnum):
    """Why the device that shows the code says no to one that has proven to know it."""

    REJECTED = "rejected"
    """Its person said no."""
    UNANSWERED = "unanswered"
    """Its person did not answer in time."""
    USED = "used"
    """Another device was faster."""
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    CONFLICT = "conflict"
    """The joiner's device id belongs to another device that is paired already."""
    FAILED = "failed"
    """It could not store the pairing."""


class PairingRequest(Message, frozen=True, kw_only=True, tag=1):
    """Joiner to initiator: I know the code of this session.

    :param versions: minor versions of the conversation that the joiner speaks.
    :param suites: AEAD suites it offers, preferred first.
    :param session_id: UUID derived from the code.
    :param nonce: 32 random bytes.
    :param ephemeral: X25519 public key, 32 bytes, for this conversation only.
    :param mac: HMAC-SHA256 over the transcript so far under a key from the code.
    """

    versions: Offer
    suites: Offer
    session_id: Bytes16
    nonce: Bytes32
    ephemeral: Bytes32
    mac: Bytes32


class Challenge(Message, frozen=True, kw_only=True, tag=2):
    """Initiator to joiner: so do I; prove that you are who you are.

    :param version: the one chosen of those offered.
    :param suite: the one chosen of those offered.
    :param challenge: 32 random bytes.
    :param ephemeral: X25519 public key, 32 bytes, for this conversation only.
    :param box: sealed `ChallengePayload`.
    """

    version: Number
    suite: Number
    challenge: Bytes32
    ephemeral: Bytes32
    box: Box


class Response(Message, frozen=True, kw_only=True, tag=3):
    """Joiner to initiator.

    :param box: sealed `ResponsePayload`.
    """

    box: Box


class Complete(Message, frozen=True, kw_only=True, tag=4):
    """Initiator to joiner, when its person has answered and the pairing is stored as pending.

    :param box: sealed `CompletePayload`.
    """

    box: Box


class Confirm(Message, frozen=True, kw_only=True, tag=5):
    """Joiner to initiator, when the pairing is stored.

    :param box: sealed `ConfirmPayload`.
    """

    box: Box


class Refusal(Message, frozen=True, kw_only=True, tag=6):
    """The same empty answer to everything that does not prove knowledge of an open code."""


class ChallengePayload(Message, frozen=True, kw_only=True, tag=17):
    """Who the initiator is.

    :param device: as shown to the joiner's person.
    :param addresses: where it can be dialled, multiaddrs.
    :param signature: Ed25519 by its device key over the transcript and the two fields above.
    """

    device: DeviceInfo
    addresses: Addresses
    signature: Bytes64


class ResponsePayload(Message, frozen=True, kw_only=True, tag=18):
    """Who the joiner is.

    :param device: as shown to the initiator's person.
    :param addresses: where it can be dialled, multiaddrs.
    :param signature: Ed25519 by its device key over the challenge, the transcript and the two fields above.
    :param confirmation: HMAC-SHA256 that shows that it has the key.
    """

    device: DeviceInfo
    addresses: Addresses
    signature: Bytes64
    confirmation: Bytes32


class CompletePayload(Message, frozen=True, kw_only=True, tag=19):
    """Whether the devices are paired now.

    :param reason: why not, if not.
    :param pairing_id: UUID of this pairing; zero if there is none.
    :param confirmation: HMAC-SHA256 under a key from the pairing root, over the transcript and the fields above.
    """

    success: bool
    reason: RefusalReason | None
    pairing_id: Bytes16
    confirmation: Bytes32


class ConfirmPayload(Message, frozen=True, kw_only=True, tag=20):
    """The joiner has stored the pairing.

    :param pairing_id: the one of `CompletePayload`.
    """

    pairing_id: Bytes16


_ANNOUNCEABLE = re.compile(_ADDRESS_PATTERN)


def is_announceable(address: str) -> bool:
    """Whether an address of our own fits into a payload."""
    return len(address) <= MAX_ADDRESS_CHARACTERS and _ANNOUNCEABLE.match(address) is not None
