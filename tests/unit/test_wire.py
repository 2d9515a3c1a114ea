import uuid
from typing import Any

import anyio
import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core import wire
from sdnet_core.errors import ConnectionFailedError, SerializationError


class Colour(wire.Message, frozen=True, kw_only=True, tag=1):
    name: str
    digest: wire.Bytes16 = b"\0" * 16


class Shape(wire.Message, frozen=True, kw_only=True, tag=2):
    sides: int
    colours: tuple[Colour, ...] = ()


class Sender:
    """Collects what is sent; gives it back in pieces of one size."""

    def __init__(self, data: bytes = b"", piece: int = 3) -> None:
        self.data, self.piece = bytearray(data), piece

    async def send(self, item: bytes) -> None:
        self.data += item

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if not self.data:
            raise anyio.EndOfStream
        taken = bytes(self.data[: self.piece])
        del self.data[: self.piece]
        return taken


@given(st.integers(-(2**63), 2**63 - 1), st.lists(st.tuples(st.text(), st.binary(min_size=16, max_size=16))))
def test_a_message_survives_the_round_trip(sides: int, colours: list[tuple[str, bytes]]) -> None:
    message = Shape(sides=sides, colours=tuple(Colour(name=n, digest=d) for n, d in colours))
    assert wire.decode(wire.encode(message), Colour | Shape) == message


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_means_exactly_what_it_says(data: bytes) -> None:
    try:
        value = wire.decode(data, Colour | Shape)
    except SerializationError:
        return
    assert wire.encode(value) == data


@pytest.mark.parametrize("inner", [b"\x00", b"\x63abc", b"\x43abc", b"\x82\x00\x01", b"\xa0", b"\x80", b"\xf6"])
def test_every_tag_is_denied(inner: bytes) -> None:
    for tag in (*range(300), 1004, 43000, 55799, 2**32):
        head = cbor2.dumps(cbor2.CBORTag(tag, 0))[:-1]
        with pytest.raises(SerializationError):
            wire.decode(head + inner, Any)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x18\x01", "not in the one form"),
        (b"\xa2\x01\x01\x01\x01", "uplicate"),
        (b"\x9f\xff", "ndefinite"),
        (b"\x00\x00", "not in the one form"),
        (b"\x81" * 17 + b"\x00", "depth|nest"),
        (b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff", "does not decode"),
        (b"", "does not decode"),
    ],
)
def test_what_is_not_deterministic_cbor_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(SerializationError, match=why):
        wire.decode(data, Any)


def test_text_is_not_taken_for_bytes() -> None:
    text = "QUJDREVGR0hJSktMTU5PUA=="
    with pytest.raises(SerializationError, match="Expected `bytes`"):
        wire.decode(wire.encode({"t": 1, "name": "x", "digest": text}), Colour)


def test_unknown_fields_and_tags_are_refused() -> None:
    with pytest.raises(SerializationError):
        wire.decode(wire.encode({"t": 1, "name": "x", "more": 1}), Colour)
    with pytest.raises(SerializationError):
        wire.decode(wire.encode({"t": 3}), Colour | Shape)


def test_a_message_without_its_tag_or_a_field_is_refused() -> None:
    for fields in ({"sides": 3, "colours": []}, {"t": 2, "sides": 3}, {"t": 2, "sides": 3, "colours": [{"name": "x"}]}):
        with pytest.raises(SerializationError):
            wire.decode(wire.encode(fields), Shape)


def test_an_overlong_message_is_refused_unread() -> None:
    with pytest.raises(SerializationError, match="at most 10"):
        wire.decode(b"\x00" * 11, Any, max_bytes=10)


def test_values_without_wire_form_are_not_encoded() -> None:
    with pytest.raises(TypeError):
        wire.encode({"x": object()})


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 50))
def test_frames_come_out_as_they_went_in(payloads: list[bytes], piece: int) -> None:
    joined = b"".join(wire.encode_frame(p) for p in payloads)
    decoder = wire.FrameDecoder(300)
    out = []
    for start in range(0, len(joined), piece):
        decoder.feed(joined[start : start + piece])
        while (frame := decoder.next_frame()) is not None:
            out.append(frame)
    assert out == payloads
    assert decoder.pending == b""


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff" * 9, b"\x65" + b"x" * 3, b"\xe5\x00"])
def test_bad_length_prefixes_are_refused(data: bytes) -> None:
    decoder = wire.FrameDecoder(100)
    decoder.feed(data)
    with pytest.raises(SerializationError):
        decoder.next_frame()


@pytest.mark.anyio
async def test_messages_over_a_stream_cut_in_pieces() -> None:
    stream = Sender()
    messages = wire.MessageStream(stream, max_bytes=1000)
    first, second = Colour(name="red"), Shape(sides=uuid.UUID(int=5).int)
    await messages.send(first)
    await messages.send(second)
    assert await messages.receive(Colour | Shape) == first
    assert await messages.receive(Colour | Shape) == second
    assert await messages.receive_bytes_or_end() is None
    with pytest.raises(ConnectionFailedError):
        await messages.receive_bytes()


@pytest.mark.anyio
async def test_an_end_in_the_middle_of_a_message_is_an_error() -> None:
    messages = wire.MessageStream(Sender(b"\x05abc"), max_bytes=1000)
    with pytest.raises(SerializationError, match="middle"):
        await messages.receive_bytes_or_end()


@pytest.mark.anyio
async def test_bytes_behind_the_last_message_are_handed_over() -> None:
    messages = wire.MessageStream(Sender(b"\x01arest", piece=100), max_bytes=1000)
    assert await messages.receive_bytes() == b"a"
    assert messages.take_pending() == b"rest"
    assert messages.take_pending() == b""
