"""Sealed streams under a secret that two peers have agreed upon by a protocol of their own, without a session."""

from __future__ import annotations

from sdnet_core.clock import Clock
from sdnet_core.session.channel import SealedStream
from sdnet_core.session.epoch import Epoch, SessionLimits, Traffic
from sdnet_core.session.keys import KEY_BYTES, Role, Suite, derive_session_keys, extract
from sdnet_core.swarm.abc import SwarmStream

__all__ = ["seal_with_secret"]


def seal_with_secret(stream: SwarmStream, secret: bytes, clock: Clock, *, opener: bool) -> SealedStream:
    """Seal what follows on a stream, as the session protocol seals its own streams, under keys for this stream alone.

    :param secret: 32 bytes that only the two ends know, never used before.
    :param opener: whether we have opened the stream.
    :raises ValueError: the secret has another length.
    """
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a shared secret has {KEY_BYTES} bytes")
    limits = SessionLimits()
    keys = derive_session_keys(
        extract(b"sdnet/shared-secret/1", secret),
        b"",
        role=Role.INITIATOR if opener else Role.RESPONDER,
        suite=Suite.AES_256_GCM,
        created_at=clock.now(),
        lifetime_s=limits.lifetime_s,
    )
    now = clock.monotonic()
    epoch = Epoch(keys, clock, limits, Traffic(last_sent=now, last_received=now))
    return SealedStream(stream, epoch, opener=Role.INITIATOR, number=0)
