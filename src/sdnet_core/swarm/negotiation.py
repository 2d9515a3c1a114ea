"""multistream-select 1.0 on our own streams: both sides, with bounds and without a round trip more than needed.

Specification: https://github.com/multiformats/multistream-select
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ProtocolError
from .hardening import MAX_MULTISTREAM_MESSAGE_BYTES
from .muxed import MuxedStream

__all__ = ["answer", "select"]

_MULTISTREAM = "/multistream/1.0.0"
_NOT_AVAILABLE = "na"
_LIST = "ls"
_MAX_PROPOSALS = 64


async def select(stream: MuxedStream, protocols: Sequence[str]) -> str | None:
    """Agree on the first protocol that the other side speaks; None if it speaks none.

    The first proposal goes out together with the greeting, which saves a round trip.

    :raises ProtocolError: the other side does not keep to multistream-select.
    :raises MuxedStreamError: the stream has ended.
    """
    greeted = False
    for protocol in protocols:
        await stream.write(_line(protocol) if greeted else _line(_MULTISTREAM) + _line(protocol))
        if not greeted:
            await _greeting(stream)
        greeted = True
        given = await _read_line(stream)
        if given == protocol:
            return protocol
        if given != _NOT_AVAILABLE:
            raise ProtocolError("The other side gave an answer that is not one of multistream-select.")
    return None


async def answer(stream: MuxedStream, known: Mapping[Any, object]) -> str:
    """Let the other side choose a protocol that we speak.

    :raises ProtocolError: the other side does not keep to multistream-select, or proposes without end.
    :raises MuxedStreamError: the stream has ended.
    """
    await stream.write(_line(_MULTISTREAM))
    await _greeting(stream)
    for _ in range(_MAX_PROPOSALS):
        proposal = await _read_line(stream)
        if proposal in known:
            await stream.write(_line(proposal))
            return proposal
        if proposal == _LIST:
            lines = b"".join(_line(one) for one in known if one)
            await stream.write(_prefixed(lines + b"\n"))
        else:
            await stream.write(_line(_NOT_AVAILABLE))
    raise ProtocolError(f"The other side proposed {_MAX_PROPOSALS} protocols, none of which we speak.")


async def _greeting(stream: MuxedStream) -> None:
    if await _read_line(stream) != _MULTISTREAM:
        raise ProtocolError("The other side does not speak multistream-select 1.0.")


async def _read_line(stream: MuxedStream) -> str:
    """Read one message, and not a byte more."""
    length = shift = 0
    while True:
        byte = (await stream.read(1))[0]
        length |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
        shift += 7
        if shift > 14:
            raise ProtocolError("The other side sent an endless length while agreeing on a protocol.")
    if not 0 < length <= MAX_MULTISTREAM_MESSAGE_BYTES:
        raise ProtocolError(f"The other side sent a message of {length} bytes while agreeing on a protocol.")
    line = b""
    while len(line) < length:
        line += await stream.read(length - len(line))
    if not line.endswith(b"\n"):
        raise ProtocolError("The other side sent a message that is no line while agreeing on a protocol.")
    return line[:-1].decode("ascii", "replace")


def _line(text: str) -> bytes:
    encoded = text.encode("ascii") + b"\n"
    if len(encoded) > MAX_MULTISTREAM_MESSAGE_BYTES:
        raise ProtocolError("A protocol id is too long.")
    return _prefixed(encoded)


def _prefixed(data: bytes) -> bytes:
    prefix = bytearray()
    length = len(data)
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + data
