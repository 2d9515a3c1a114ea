"""What devices that are not paired say to each other on ``/sdnet/spacedrop-nearby/1`` before the offer.

The specification is ``docs/protocol/spacedrop.md``.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from sdnet_core.wire import Bytes32, Message

from .messages import MAX_REASON_LENGTH, MAX_SENDER_NAME_LENGTH

__all__ = [
    "MAX_HANDSHAKE_BYTES",
    "PROTOCOL_NAME",
    "TAG",
    "KeyAnswer",
    "NearbyCommit",
    "NearbyFirst",
    "NearbyKey",
    "NearbyPresence",
    "NearbyQuery",
    "NearbyReady",
    "NearbyRefusal",
    "NearbyReveal",
    "PresenceAnswer",
]

PROTOCOL_NAME: Final = "spacedrop-nearby"
TAG: Final = b"spacedrop/1"
"""What a device that everybody near may find announces beside its addresses. It is the same for all."""
MAX_HANDSHAKE_BYTES: Final = 4096
"""Longest message before the stream is sealed."""

_Name = Annotated[str, Meta(max_length=MAX_SENDER_NAME_LENGTH)]


class NearbyQuery(Message, frozen=True, kw_only=True, tag=1):
    """Asks a device for its name."""


class NearbyPresence(Message, frozen=True, kw_only=True, tag=2):
    """The name, as the device says."""

    name: _Name


class NearbyCommit(Message, frozen=True, kw_only=True, tag=3):
    """The sender binds itself to a key that it does not show yet.

    :param commitment: of ephemeral key and nonce, see `meeting`.
    :param name: who sends, as the sender says.
    """

    commitment: Bytes32
    name: _Name


class NearbyKey(Message, frozen=True, kw_only=True, tag=4):
    """The receiver shows its key.

    :param ephemeral: X25519 public key.
    :param name: who receives, as the receiver says.
    """

    ephemeral: Bytes32
    nonce: Bytes32
    name: _Name


class NearbyReveal(Message, frozen=True, kw_only=True, tag=5):
    """The sender shows what it had committed to. All that follows is sealed."""

    ephemeral: Bytes32
    nonce: Bytes32


class NearbyRefusal(Message, frozen=True, kw_only=True, tag=6):
    """The receiver does not talk to strangers now.

    :param code: as in `messages.Refusal`.
    """

    code: Annotated[str, Meta(max_length=32, pattern=r"\A[a-z-]+\Z")]
    reason: Annotated[str, Meta(max_length=MAX_REASON_LENGTH)]


class NearbyReady(Message, frozen=True, kw_only=True, tag=7):
    """The first sealed message: the receiver's person is shown the check number."""


NearbyFirst: TypeAlias = NearbyQuery | NearbyCommit
"""What a stream begins with."""
PresenceAnswer: TypeAlias = NearbyPresence | NearbyRefusal
KeyAnswer: TypeAlias = NearbyKey | NearbyRefusal
