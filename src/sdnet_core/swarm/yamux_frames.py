"""The frames of ``/yamux/1.0.0`` and the sizes that this implementation uses.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md and, for libp2p,
https://github.com/libp2p/specs/blob/master/yamux/README.md.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("!BBHII")
"""Version, type, flags, stream id, length."""
HEADER_BYTES = 12
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
KNOWN_FLAGS = SYN | ACK | FIN | RST
GO_AWAY_NORMAL, GO_AWAY_PROTOCOL_ERROR, GO_AWAY_INTERNAL_ERROR = range(3)

INITIAL_WINDOW = 256 * 1024
"""What either side may send on a new stream, as the specification has it."""
MAX_WINDOW = 16 * 1024 * 1024
"""What the window of one stream may grow to."""
MAX_SEND_WINDOW = 2**32 - 1
MAX_STREAM_ID = 2**32 - 1

NOISE_PLAINTEXT_BYTES = 65_519
"""Most plaintext in one Noise message: 65,535 bytes less the 16 of the authentication tag."""
NOISE_OVERHEAD_BYTES = 18
"""What a Noise message adds to its plaintext: length and authentication tag."""
BATCH_MESSAGES = 16
"""So many full Noise messages are sealed and sent at a time."""
MAX_PAYLOAD_BYTES = BATCH_MESSAGES * NOISE_PLAINTEXT_BYTES - HEADER_BYTES - NOISE_OVERHEAD_BYTES
"""Largest payload we send: with its header in a message of its own it is as long as what is sealed at a time."""


class YamuxError(Exception):
    """The other side broke the multiplexer's protocol; the connection cannot go on."""
