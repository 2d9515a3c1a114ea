"""Deterministic CBOR of operations and entries, put together by hand (pure).

A library of small entries is encoded one by one, and calling cbor2 for each costs several times what the entry does.
What is written here is what cbor2 would write; the tests hold one against the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from typing import Any

import cbor2

__all__ = ["array_head", "encode_state_of_one_write"]

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
_U16, _U32, _U64 = Struct(">BH").pack, Struct(">BI").pack, Struct(">BQ").pack


def _head(major: int, number: int) -> bytes:
    """The first bytes of an item (RFC 8949 section 3), in their shortest form."""
    if number < 24:
        return bytes((major | number,))
    if number < 0x100:
        return bytes((major | 24, number))
    if number < 0x10000:
        return _U16(major | 25, number)
    if number < 0x100000000:
        return _U32(major | 26, number)
    return _U64(major | 27, number)


_TEXT_HEADS = tuple(_head(_TEXT, length) for length in range(256))
_BYTES_HEADS = tuple(_head(_BYTES, length) for length in range(256))
_CONSTANTS = {None: b"\xf6", True: b"\xf5", False: b"\xf4"}
_STATE_HEAD = b"\x85"
_ONE_WRITE = b"\x81\x83"
_VALUE_OF_FIRST = b"\x81\x82\x00"
_NO_DELETIONS = b"\x80"


def array_head(length: int) -> bytes:
    """What comes before the items of an array."""
    return _head(_ARRAY, length)


def _text(text: str) -> bytes:
    raw = text.encode()
    length = len(raw)
    return _TEXT_HEADS[length] + raw if length < 256 else _head(_TEXT, length) + raw


def _value(value: Any) -> bytes:
    kind = type(value)
    if kind is str:
        raw: bytes = value.encode()
        length = len(raw)
        return _TEXT_HEADS[length] + raw if length < 256 else _head(_TEXT, length) + raw
    if kind is int:
        return _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, ~value)
    if kind is bytes:
        raw, length = value, len(value)
        return _BYTES_HEADS[length] + raw if length < 256 else _head(_BYTES, length) + raw
    if kind is bool or value is None:
        return _CONSTANTS[value]
    return cbor2.dumps(value, canonical=True)


# The same few kinds and sets of fields come again and again.
@lru_cache(maxsize=256)
def _kind(kind: str) -> bytes:
    return _STATE_HEAD + _text(kind)


@lru_cache(maxsize=256)
def _order(names: tuple[str, ...]) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """The head of a map with these keys, and the keys in their order: by their written length, then by their bytes."""
    written = sorted((len(key := _text(name)), key, name) for name in names)
    return _head(_MAP, len(names)), tuple((name, key + _VALUE_OF_FIRST) for _, key, name in written)


def encode_state_of_one_write(
    kind: str, entry_id: str, author: bytes, sequence: int, stamp: int, values: Mapping[str, Any]
) -> bytes:
    """The state of an entry all of whose fields are from one write, nothing beside it; see `state.encode_state`."""
    head, names = _order(tuple(values))
    parts = [
        _kind(kind),
        _text(entry_id),
        _ONE_WRITE,
        _value(author),
        _head(_UNSIGNED, sequence),
        _head(_UNSIGNED, stamp),
        head,
    ]
    for name, key in names:
        parts += (key, _value(values[name]))
    parts.append(_NO_DELETIONS)
    return b"".join(parts)
