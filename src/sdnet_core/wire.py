"""Strict, deterministic CBOR and length-prefixed framing (pure, apart from the two stream helpers).

Encoding is RFC 8949 section 4.2 deterministic encoding. Decoding accepts nothing else: what came in must be what
we would have written. Frames are an unsigned varint length (multiformats, at most 9 bytes) and that many bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol, TypeVar, cast

import anyio
import cbor2
import msgspec

from .errors import ConnectionFailedError, SerializationError

__all__ = [
    "Bytes16",
    "Bytes32",
    "FrameDecoder",
    "Message",
    "MessageStream",
    "decode",
    "decode_values",
    "encode",
    "encode_frame",
    "encode_varint",
]

MAX_DEPTH = 16
"""Deepest nesting of arrays and maps accepted from outside."""
MAX_VARINT_BYTES = 9
"""An unsigned varint of the multiformats specification has at most 63 bits."""

_BUILTIN_TYPES = (bytes,)
_FAILURES = (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError)

T = TypeVar("T")

Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""A UUID or another 128-bit value."""
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""A key, a digest or a nonce of 256 bits."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="t"):
    """Base of every wire message.

    Subclasses say ``frozen=True, kw_only=True, tag=<int>`` and bound every length with `msgspec.Meta`.
    """


def encode(value: Any) -> bytes:
    """Encode a message, or plain builtins, as deterministic CBOR.

    :raises TypeError: the value has a type that the wire does not carry.
    """
    builtins = msgspec.to_builtins(value, builtin_types=_BUILTIN_TYPES, enc_hook=_encode_hook)
    return cbor2.dumps(builtins, canonical=True)


def decode(data: bytes | bytearray | memoryview, type_: type[T] | Any, *, max_bytes: int = 1 << 20) -> T:
    """Decode untrusted bytes to a message type.

    :param type_: a `Message` subclass, or a union of tagged ones.
    :param max_bytes: longest input looked at.
    :raises SerializationError: too long, not deterministic CBOR, a tag, a duplicate key, trailing bytes, nested too
        deeply, or not a valid ``type_``.
    """
    raw = bytes(data)
    value = decode_values(raw, max_bytes=max_bytes)
    try:
        message = msgspec.convert(value, type_, strict=True, builtin_types=_BUILTIN_TYPES, dec_hook=_decode_hook)
        if encode(message) != raw:
            raise SerializationError("The message is not in the one form in which it would have been written.")
        return cast(T, message)
    except SerializationError:
        raise
    except (msgspec.ValidationError, *_FAILURES) as error:
        raise SerializationError(f"The message does not decode: {error}") from error


def decode_values(data: bytes | bytearray | memoryview, *, max_bytes: int = 1 << 20) -> Any:
    """Decode untrusted bytes to plain values, for a caller that itself checks what they are and that they are in the
    one form in which they would have been written.

    :raises SerializationError: as `decode`, apart from these two checks.
    """
    if len(data) > max_bytes:
        raise SerializationError(f"The message has {len(data)} bytes; at most {max_bytes} are allowed here.")
    try:
        return cbor2.loads(
            bytes(data),
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            semantic_decoders=_DENIED_TAGS,
            tag_hook=_deny_tag,
        )
    except SerializationError:
        raise
    except _FAILURES as error:
        raise SerializationError(f"The message does not decode: {error}") from error


def _encode_hook(value: Any) -> Any:
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    raise TypeError(f"{type(value).__name__} has no wire form")


def _decode_hook(type_: type, value: Any) -> Any:
    raise TypeError(f"{type_.__name__} has no wire form")


def _deny_tag(*_: Any) -> Any:
    raise SerializationError("The message holds a CBOR tag; none is allowed.")


# Either one alone leaves holes: cbor2 asks the semantic decoders for the tags it knows, the hook for all others.
_DENIED_TAGS: dict[int, Any] = dict.fromkeys(
    (*range(64), 100, 256, 257, 258, 259, 260, 261, 1004, 43000, 55799), _deny_tag
)


def encode_varint(value: int) -> bytes:
    """Encode a length as an unsigned varint (multiformats, minimal form)."""
    if not 0 <= value < 1 << 63:
        raise ValueError("a varint holds 0 … 2**63 - 1")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_frame(payload: bytes) -> bytes:
    """Prefix a payload with its length."""
    return encode_varint(len(payload)) + payload


class FrameDecoder:
    """Cuts a byte stream into frames (sans-I/O).

    :param max_bytes: longest payload accepted, bytes.
    """

    __slots__ = ("_buffer", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes that came in."""
        self._buffer += data

    @property
    def pending(self) -> bytes:
        """Bytes held that belong to no complete frame taken yet."""
        return bytes(self._buffer)

    def next_frame(self) -> bytes | None:
        """Take the next whole payload, or None if more bytes are needed.

        :raises SerializationError: the length is too large or not a minimal varint; the stream is then useless.
        """
        length = shift = 0
        for index, byte in enumerate(self._buffer):
            if index >= MAX_VARINT_BYTES:
                raise SerializationError("The length prefix is not a varint.")
            length |= (byte & 0x7F) << shift
            shift += 7
            if length > self.max_bytes:
                raise SerializationError(f"The message is longer than the {self.max_bytes} bytes allowed here.")
            if not byte & 0x80:
                if byte == 0 and index > 0:
                    raise SerializationError("The length prefix is not minimal.")
                start = index + 1
                if len(self._buffer) < start + length:
                    return None
                frame = bytes(self._buffer[start : start + length])
                del self._buffer[: start + length]
                return frame
        if len(self._buffer) >= MAX_VARINT_BYTES:
            raise SerializationError("The length prefix is not a varint.")
        return None


class _ByteStream(Protocol):
    async def receive(self, max_bytes: int = 65536) -> bytes: ...
    async def send(self, item: bytes) -> None: ...


class MessageStream:
    """Whole messages over a byte stream, for one conversation.

    :param stream: anything with anyio's ``receive`` and ``send``.
    :param max_bytes: longest message accepted, bytes.
    """

    __slots__ = ("_decoder", "_stream")

    def __init__(self, stream: _ByteStream, *, max_bytes: int) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(max_bytes)

    async def send(self, message: Message) -> None:
        """Send one message.

        :raises ConnectionFailedError: the stream is gone.
        """
        await self.send_bytes(encode(message))

    async def send_bytes(self, payload: bytes) -> None:
        """Send one payload that is already encoded.

        :raises ConnectionFailedError: the stream is gone.
        """
        try:
            await self._stream.send(encode_frame(payload))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionFailedError("The connection was lost.") from error

    async def receive(self, type_: type[T] | Any) -> T:
        """Receive and decode one message.

        :raises SerializationError: it is not a valid ``type_``.
        :raises ConnectionFailedError: the stream ended or broke before a whole message came.
        """
        return cast(T, decode(await self.receive_bytes(), type_, max_bytes=self._decoder.max_bytes))

    async def receive_bytes(self) -> bytes:
        """Receive one payload.

        :raises SerializationError: the frame is malformed or too long.
        :raises ConnectionFailedError: the stream ended or broke before a whole frame came.
        """
        payload = await self.receive_bytes_or_end()
        if payload is None:
            raise ConnectionFailedError("The other side ended the conversation.")
        return payload

    async def receive_bytes_or_end(self) -> bytes | None:
        """Receive one payload, or None after an orderly end between messages.

        :raises SerializationError: the frame is malformed, too long, or cut off by the end.
        :raises ConnectionFailedError: the stream broke.
        """
        while (frame := self._decoder.next_frame()) is None:
            try:
                data = await self._stream.receive(65536)
            except anyio.EndOfStream:
                if self._decoder.pending:
                    raise SerializationError("The stream ended in the middle of a message.") from None
                return None
            except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                raise ConnectionFailedError("The connection was lost.") from error
            self._decoder.feed(data)
        return frame

    def take_pending(self) -> bytes:
        """Hand over bytes received behind the last message, for a protocol that goes on with raw bytes."""
        pending = self._decoder.pending
        self._decoder = FrameDecoder(self._decoder.max_bytes)
        return pending
