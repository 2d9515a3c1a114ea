"""Takes what is opened, as the multiplexer does, and keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdnet_core.swarm.noise_core import CipherState, Opener, Sealer, Sink

if TYPE_CHECKING:
    from sdnet_core.swarm.noise import NoiseSession


class Kept(list[bytes]):
    """The plaintexts that were handed over, in order."""

    def receive(self, data: bytes) -> None:
        self.append(data)

    def place(self, size: int) -> memoryview | None:
        return None

    def placed(self, size: int) -> None:
        raise AssertionError("There was no place.")


class Sealed:
    """A Noise channel in one direction, after its handshake."""

    def __init__(self) -> None:
        self._sealer = Sealer(CipherState(bytes(32)))
        self._opener = Opener(CipherState(bytes(32)))

    def seal(self, plaintexts: Sequence[bytes]) -> bytearray:
        """The bytes on the wire of one message for each plaintext."""
        wire = bytearray(Sealer.sealed_bytes(plaintexts))
        self._sealer.seal_into(plaintexts, memoryview(wire))
        return wire

    def deliver(self, plaintexts: Sequence[bytes], sink: Sink) -> None:
        """Hand messages over to a sink, as a session does with what one call to the system brings."""
        self.open(self.seal(plaintexts), sink)

    def open(self, wire: bytes | bytearray, sink: Sink) -> bool:
        return self._opener.deliver(sink, wire)


def opened(opener: Opener, data: bytes | bytearray | memoryview = b"") -> list[bytes]:
    """What an opener makes of some more bytes."""
    kept = Kept()
    assert opener.deliver(kept, data) is bool(kept)
    return kept


async def delivered(session: NoiseSession) -> list[bytes]:
    """What one call to the system brings; nothing at the end."""
    kept = Kept()
    assert await session.deliver(kept) is bool(kept)
    return kept
