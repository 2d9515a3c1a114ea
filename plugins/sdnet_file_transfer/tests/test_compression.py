"""Records that are compressed: when it pays, and what a hostile one may not do."""

from __future__ import annotations

import os
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import SerializationError
from sdnet_file_transfer import messages as m
from sdnet_file_transfer.compression import Packer, unpack

TEXT = b"\x01" + b"".join(b"line %d of a text that repeats itself\n" % n for n in range(20_000))
NOISE = b"\x01" + os.urandom(800_000)


def header(length: int) -> bytes:
    return struct.pack(">BI", m.PACKED, length)


@given(st.binary(min_size=2, max_size=5000).map(lambda data: data * 9))
def test_what_is_packed_comes_out_again(data: bytes) -> None:
    packed = Packer().pack(memoryview(data))
    assert packed is None or unpack(packed) == data


def test_text_is_packed_and_noise_is_not() -> None:
    packer = Packer()
    packed = packer.pack(memoryview(TEXT))
    assert packed is not None
    assert len(packed) < len(TEXT) / 5
    assert unpack(packed) == TEXT
    assert packer.pack(memoryview(NOISE)) is None


def test_noise_is_tried_less_and_less_and_text_behind_it_is_found() -> None:
    packer = Packer()
    for _ in range(100):
        assert packer.pack(memoryview(NOISE)) is None
    assert any(packer.pack(memoryview(TEXT)) for _ in range(65))
    packer.pack(memoryview(NOISE))
    packer.next_file()
    assert packer.pack(memoryview(TEXT))


def test_a_link_that_is_faster_than_the_compressor_gets_records_as_they_are() -> None:
    now = 0.0

    def slow_clock() -> float:
        nonlocal now
        now += 1.0
        return now

    packer = Packer(slow_clock)
    assert packer.pack(memoryview(TEXT))
    packer.sent(len(TEXT), 0.001)
    assert packer.pack(memoryview(TEXT)) is None
    for _ in range(200):
        packer.sent(len(TEXT), 10.0)
    assert any(packer.pack(memoryview(TEXT)) for _ in range(10))


FRAME = zstandard.ZstdCompressor().compress(TEXT)
BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20))


@pytest.mark.parametrize(
    "record",
    [
        b"\x02",
        header(10),
        header(len(TEXT)) + FRAME[:-5],
        header(len(TEXT)) + FRAME + b"more",
        header(len(TEXT)) + FRAME + FRAME,
        header(len(TEXT) - 1) + FRAME,
        header(len(TEXT) + 1) + FRAME,
        header(64 << 20) + BOMB,
        header(1 << 20) + BOMB,
        header(0) + FRAME,
        header(0xFFFFFFFF) + FRAME,
        header(1 << 20) + zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20)),
        header(5) + b"hello",
    ],
    ids=lambda record: f"{len(record)} bytes",
)
def test_what_is_not_what_it_says_is_refused(record: bytes) -> None:
    with pytest.raises(SerializationError):
        unpack(record)


@given(st.binary(max_size=200), st.integers(0, 0xFFFFFFFF))
def test_anything_else_is_refused_or_as_long_as_it_says(data: bytes, length: int) -> None:
    try:
        assert len(unpack(header(length) + data)) == length
    except SerializationError:
        pass
