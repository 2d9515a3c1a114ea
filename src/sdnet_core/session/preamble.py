"""What stands before the first record of a sealed stream: under which keys it is.

The byte-exact specification is ``docs/protocol/session.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from sdnet_core.errors import ConnectionFailedError, NetworkTimeoutError, ProtocolError
from sdnet_core.session.keys import EPOCH_ID_BYTES, TAG_BYTES
from sdnet_core.swarm.abc import SwarmStream

__all__ = ["PREAMBLE_BYTES", "Preamble", "read_preamble"]

PREAMBLE_BYTES = EPOCH_ID_BYTES + 8 + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Preamble:
    """What stands before the first record of a stream.

    :param epoch_id: whose keys protect the stream, 8 bytes.
    :param number: of the stream.
    :param tag: shows that the stream's opener holds its key.
    """

    epoch_id: bytes
    number: int
    tag: bytes

    def encode(self) -> bytes:
        """The wire form, 32 bytes."""
        return self.epoch_id + self.number.to_bytes(8, "big") + self.tag

    @classmethod
    def decode(cls, data: bytes) -> Preamble:
        """Read the wire form, exactly 32 bytes."""
        return cls(data[:8], int.from_bytes(data[8:16], "big"), data[16:])


async def read_preamble(stream: SwarmStream, *, timeout_s: float = 10.0) -> Preamble:
    """Read what an inbound sealed stream begins with, and not a byte more.

    :raises NetworkTimeoutError: it did not come whole within ``timeout_s``.
    :raises ProtocolError: the stream ended before it was whole.
    :raises ConnectionFailedError: the stream broke.
    """
    data = b""
    try:
        with anyio.fail_after(timeout_s):
            while len(data) < PREAMBLE_BYTES:
                data += await stream.receive(PREAMBLE_BYTES - len(data))
    except TimeoutError as error:
        raise NetworkTimeoutError("The other side opened a stream and did not begin.") from error
    except anyio.EndOfStream as error:
        raise ProtocolError("The other side ended a stream before it began.") from error
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        raise ConnectionFailedError("The connection was lost.") from error
    return Preamble.decode(data)
