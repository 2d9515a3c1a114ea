"""The messages of libp2p's circuit relay v2 and DCUtR: protobuf, read strictly and within bounds (pure).

Specifications: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md and …/relay/DCUtR.md
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import base58

from sdnet_core.errors import ConnectionFailedError, ProtocolError, SerializationError
from sdnet_core.wire import MessageStream, encode_varint

__all__ = [
    "DCUTR",
    "HOP",
    "MAX_MESSAGE_BYTES",
    "STOP",
    "HopMessage",
    "HopType",
    "Limit",
    "PunchMessage",
    "PunchType",
    "RelayStatus",
    "StopMessage",
    "StopType",
    "exchange",
    "explain",
]

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
DCUTR = "/libp2p/dcutr"
MAX_MESSAGE_BYTES = 4096
MAX_FIELDS = 64

Fields = dict[int, list[int | bytes]]
E = TypeVar("E", bound=IntEnum)


class HopType(IntEnum):
    """What a message between a peer and its relay is."""

    RESERVE = 0
    CONNECT = 1
    STATUS = 2


class StopType(IntEnum):
    """What a message between a relay and the peer that is being called is."""

    CONNECT = 0
    STATUS = 1


class RelayStatus(IntEnum):
    """How a request went."""

    UNUSED = 0
    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


class PunchType(IntEnum):
    """What a message of DCUtR is."""

    CONNECT = 100
    SYNC = 300


@dataclass(frozen=True, slots=True)
class Limit:
    """What a circuit may last and carry; 0 for no limit.

    :param duration_s: from its beginning.
    :param data_bytes: in each direction.
    """

    duration_s: int = 0
    data_bytes: int = 0

    def encode(self) -> bytes:
        """As protobuf; what is 0 is left out."""
        fields = ((1, self.duration_s), (2, self.data_bytes))
        return b"".join(_field(number, value) for number, value in fields if value)

    @classmethod
    def decode(cls, data: bytes) -> Limit:
        """Read it.

        :raises SerializationError: it is not valid.
        """
        fields = _fields(data)
        return cls(_number(fields, 1) or 0, _number(fields, 2) or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HopMessage:
    """Between a peer and its relay.

    :param peer: peer id of the one to be called; a reservation is always for whoever sends it.
    :param expires_at: of a reservation, seconds since the epoch.
    :param addresses: of the relay, binary multiaddrs.
    """

    type: HopType
    peer: str = ""
    expires_at: int = 0
    addresses: tuple[bytes, ...] = ()
    limit: Limit | None = None
    status: RelayStatus | None = None

    def encode(self) -> bytes:
        """As protobuf."""
        out = _field(1, self.type)
        if self.peer:
            out += _field(2, _peer(self.peer))
        if self.expires_at:
            out += _field(3, _field(1, self.expires_at) + b"".join(_field(2, address) for address in self.addresses))
        if self.limit is not None:
            out += _field(4, self.limit.encode())
        if self.status is not None:
            out += _field(5, self.status)
        return out

    @classmethod
    def decode(cls, data: bytes) -> HopMessage:
        """Read it.

        :raises SerializationError: it is not valid.
        """
        fields = _fields(data)
        reservation = _fields(_bytes(fields, 3) or b"")
        limit = _bytes(fields, 4)
        return cls(
            type=_enum(HopType, fields, 1),
            peer=_peer_id(_bytes(fields, 2)),
            expires_at=_number(reservation, 1) or 0,
            addresses=tuple(value for value in reservation.get(2, [])[:16] if isinstance(value, bytes)),
            limit=None if limit is None else Limit.decode(limit),
            status=_enum(RelayStatus, fields, 5) if 5 in fields else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StopMessage:
    """Between a relay and the peer that is being called.

    :param peer: peer id of the one who calls; what the relay says, which the handshake inside has to show.
    """

    type: StopType
    peer: str = ""
    limit: Limit | None = None
    status: RelayStatus | None = None

    def encode(self) -> bytes:
        """As protobuf."""
        out = _field(1, self.type)
        if self.peer:
            out += _field(2, _peer(self.peer))
        if self.limit is not None:
            out += _field(3, self.limit.encode())
        if self.status is not None:
            out += _field(4, self.status)
        return out

    @classmethod
    def decode(cls, data: bytes) -> StopMessage:
        """Read it.

        :raises SerializationError: it is not valid.
        """
        fields = _fields(data)
        limit = _bytes(fields, 3)
        return cls(
            type=_enum(StopType, fields, 1),
            peer=_peer_id(_bytes(fields, 2)),
            limit=None if limit is None else Limit.decode(limit),
            status=_enum(RelayStatus, fields, 4) if 4 in fields else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PunchMessage:
    """Between two peers that dial each other at the same moment.

    :param addresses: binary multiaddrs at which the sender has been seen.
    """

    type: PunchType
    addresses: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """As protobuf."""
        return _field(1, self.type) + b"".join(_field(2, address) for address in self.addresses)

    @classmethod
    def decode(cls, data: bytes) -> PunchMessage:
        """Read it.

        :raises SerializationError: it is not valid.
        """
        fields = _fields(data)
        addresses = tuple(value for value in fields.get(2, [])[:32] if isinstance(value, bytes))
        return cls(type=_enum(PunchType, fields, 1), addresses=addresses)


async def exchange(messages: MessageStream, message: HopMessage | StopMessage) -> bytes:
    """Send a request and receive its answer.

    :raises ConnectionFailedError: the stream broke.
    :raises ProtocolError: the answer is too long.
    """
    await messages.send_bytes(message.encode())
    try:
        return await messages.receive_bytes()
    except SerializationError as error:
        raise ProtocolError("The other side breaks the relay protocol.") from error


def explain(status: RelayStatus | None) -> ConnectionFailedError:
    """What to raise for a status other than OK."""
    match status:
        case RelayStatus.NO_RESERVATION:
            text = "The device has no place at the relay now."
        case RelayStatus.RESERVATION_REFUSED:
            text = "The relay has no place left."
        case RelayStatus.RESOURCE_LIMIT_EXCEEDED:
            text = "The relay carries as much as it may."
        case RelayStatus.PERMISSION_DENIED:
            text = "The relay does not let us."
        case RelayStatus.CONNECTION_FAILED:
            text = "The relay does not reach the device."
        case _:
            text = f"The relay failed (status {status!s})."
    return ConnectionFailedError(text)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(int(value))
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def _fields(data: bytes) -> Fields:
    """Take a message apart; later values of a field come after earlier ones."""
    found: Fields = {}
    at = count = 0
    while at < len(data):
        count += 1
        if count > MAX_FIELDS:
            raise SerializationError("The message has too many fields.")
        key, at = _varint(data, at)
        value: int | bytes
        match key & 7:
            case 0:
                value, at = _varint(data, at)
            case 2:
                length, at = _varint(data, at)
                if length > len(data) - at:
                    raise SerializationError("The message is cut off.")
                value, at = data[at : at + length], at + length
            case 1 | 5 as kind:
                # Of a field that we do not know.
                size = 8 if kind == 1 else 4
                if size > len(data) - at:
                    raise SerializationError("The message is cut off.")
                at += size
                continue
            case _:
                raise SerializationError("The message has a field of a kind that is not allowed.")
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise SerializationError("The message is cut off.")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _number(fields: Fields, number: int) -> int | None:
    values = fields.get(number)
    if not values:
        return None
    if not isinstance(values[-1], int):
        raise SerializationError("A field of the message has the wrong type.")
    return min(values[-1], (1 << 62) - 1)


def _bytes(fields: Fields, number: int) -> bytes | None:
    values = fields.get(number)
    if not values:
        return None
    if not isinstance(values[-1], bytes):
        raise SerializationError("A field of the message has the wrong type.")
    return values[-1]


def _enum(type_: type[E], fields: Fields, number: int) -> E:
    try:
        return type_(_number(fields, number) or 0)
    except ValueError as error:
        raise SerializationError(f"{error}.") from error


def _peer(peer_id: str) -> bytes:
    return _field(1, base58.b58decode(peer_id))


def _peer_id(data: bytes | None) -> str:
    if data is None:
        return ""
    raw = _bytes(_fields(data), 1)
    if raw is None or not 2 <= len(raw) <= 64:
        raise SerializationError("The message names no peer.")
    return base58.b58encode(raw).decode()
