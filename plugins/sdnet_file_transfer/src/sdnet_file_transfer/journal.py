"""What a receiver holds of an unfinished transfer, in a file that only grows (blocking).

An entry says: of the file with this key, so many bytes from its start have this BLAKE3. After a crash the bytes on
disk are compared with the entries, so nothing depends on the order in which data and journal reached the disk.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum

from blake3 import blake3

from .messages import Item

__all__ = ["Held", "Journal", "Mark", "group_key", "item_key"]

_MAGIC = b"sdnet file journal 1\n"
_ENTRY = struct.Struct(">B16sQ32s")
_CHECK = struct.Struct(">I")
_SIZE = _ENTRY.size + _CHECK.size
_MAX_BYTES = 256 << 20
_IDENTITY = struct.Struct(">Qq?")


class Mark(IntEnum):
    """Kinds of entries."""

    PART = 1
    """So many bytes of a file are held; 0 when it is begun anew."""
    DONE = 2
    """A file is held whole, and the sender's hash matched."""
    LANDING = 3
    """What was sent under one name is about to get its final name."""


def item_key(item: Item) -> bytes:
    """Name one version of one file: 16 bytes from its path, size, time and executable bit."""
    identity = _IDENTITY.pack(item.size, item.mtime_ns, item.executable)
    return blake3("\0".join(item.path).encode() + b"\0\0" + identity).digest(16)


def group_key(keys: list[bytes]) -> bytes:
    """Name everything that was sent under one name."""
    return blake3(b"".join(keys)).digest(16)


@dataclass(slots=True)
class Held:
    """What a journal says.

    :ivar parts: by file key, lengths and the digests of so many bytes, growing.
    :ivar done: by file key, the digest of the whole.
    """

    parts: dict[bytes, list[tuple[int, bytes]]] = field(default_factory=dict)
    done: dict[bytes, bytes] = field(default_factory=dict)
    landing: set[bytes] = field(default_factory=set)


class Journal:
    """The open journal of one transfer.

    :param descriptor: opened for reading and appending; the journal closes it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def load(self) -> Held:
        """Read what is there; a torn end is cut off."""
        size = os.fstat(self._descriptor).st_size
        held = Held()
        if size < len(_MAGIC) or size > _MAX_BYTES or os.pread(self._descriptor, len(_MAGIC), 0) != _MAGIC:
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, _MAGIC)
            return held
        good = len(_MAGIC)
        data = memoryview(_read(self._descriptor, good, size - good))
        for start in range(0, len(data) - _SIZE + 1, _SIZE):
            entry = data[start : start + _ENTRY.size]
            if _CHECK.unpack_from(data, start + _ENTRY.size)[0] != zlib.crc32(entry):
                break
            good += _SIZE
            kind, key, length, digest = _ENTRY.unpack(entry)
            if kind == Mark.PART:
                marks = held.parts.setdefault(key, [])
                while marks and marks[-1][0] >= length:  # it was begun anew, or went on from an earlier mark
                    marks.pop()
                marks.append((length, digest))
            elif kind == Mark.DONE:
                held.done[key] = digest
            elif kind == Mark.LANDING:
                held.landing.add(key)
        if good != size:
            os.ftruncate(self._descriptor, good)
        return held

    def add(self, mark: Mark, key: bytes, length: int, digest: bytes) -> None:
        """Note an entry; `flush` writes it."""
        entry = _ENTRY.pack(mark, key, length, digest)
        self._buffer += entry
        self._buffer += _CHECK.pack(zlib.crc32(entry))

    def flush(self) -> None:
        """Write what was added; safe from then on if this process dies.

        :raises OSError: the disk is full or failed; nothing that was added is forgotten.
        """
        while self._buffer:
            written = os.write(self._descriptor, self._buffer)
            del self._buffer[:written]

    def sync(self) -> None:
        """Write what was added; safe from then on if the machine dies."""
        self.flush()
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        os.close(self._descriptor)


def _read(descriptor: int, offset: int, length: int) -> bytes:
    pieces: list[bytes] = []
    while length and (piece := os.pread(descriptor, min(length, 1 << 20), offset)):
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return b"".join(pieces)
