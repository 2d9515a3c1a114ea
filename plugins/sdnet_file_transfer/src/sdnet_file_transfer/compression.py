"""Data records that are compressed where that makes a transfer faster.

Whether it does is tried again and again: a record is compressed when the last try made it smaller and took less time
than sending it as it is. What comes in is never larger than it says, nor than a record may be.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import zstandard

from sdnet_core.errors import SerializationError

from .messages import MAX_RECORD_BYTES, PACKED

__all__ = ["Packer", "unpack"]

_HEADER = struct.Struct(">BI")
_LEVEL = 1
_PROBE_BYTES = 64 * 1024
_MIN_BYTES = 4096
"""A smaller record is not worth a try."""
_WORTH = 0.9
"""Smaller than this part of what it was, or it is sent as it is."""
_MAX_SKIPPED = 64
"""Most records sent as they are before the next try."""
_SMOOTH = 0.3


class Packer:
    """Compresses records for one transfer (in a worker thread); keeps what it has learned for the next ones.

    :param clock: seconds, for how long compression takes.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True)
        self._skip = 0
        self._skipped = 1
        self._pack_rate = 0.0
        self._link_rate = 0.0

    def sent(self, count: int, took_s: float) -> None:
        """Hear how long a record took to be sent.

        :param count: bytes that went out.
        """
        if took_s > 0:
            self._link_rate = _mean(self._link_rate, count / took_s)

    @property
    def resting(self) -> bool:
        """Whether the next record is not worth a try."""
        return self._skip > 0

    def rest(self) -> None:
        """A record is sent without a try."""
        self._skip -= 1

    def next_file(self) -> None:
        """Try anew: another file begins."""
        self._skip, self._skipped = 0, 1

    def pack(self, record: memoryview) -> bytes | None:
        """Compress a data record.

        :returns: the record to send in its place; None if it is to be sent as it is.
        """
        if len(record) < _MIN_BYTES:
            return None
        if self.resting:
            self.rest()
            return None
        if self._link_rate and self._pack_rate and self._pack_rate * _WORTH < self._link_rate:
            # Only once in a while: the link may have become slower.
            self._pack_rate = 0.0
            self._not_now()
            return None
        began = self._clock()
        if len(record) > 2 * _PROBE_BYTES:
            middle = len(record) // 2
            if len(self._zstd.compress(record[middle : middle + _PROBE_BYTES])) > _WORTH * _PROBE_BYTES:
                self._not_now()
                return None
        packed = self._zstd.compress(record)
        self._pack_rate = _mean(self._pack_rate, len(record) / max(self._clock() - began, 1e-9))
        if len(packed) > _WORTH * len(record):
            self._not_now()
            return None
        self._skipped = 1
        return _HEADER.pack(PACKED, len(record)) + packed

    def _not_now(self) -> None:
        self._skip = self._skipped
        self._skipped = min(2 * self._skipped, _MAX_SKIPPED)


def _mean(before: float, now: float) -> float:
    return now if not before else before + _SMOOTH * (now - before)


def unpack(record: bytes | memoryview) -> bytes:
    """The data record that a compressed one stands for.

    :raises SerializationError: it does not decompress, or to something else than it says.
    """
    if len(record) <= _HEADER.size:
        raise SerializationError("A compressed record is cut off.")
    _, length = _HEADER.unpack_from(record)
    frame = memoryview(record)[_HEADER.size :]
    try:
        # A frame that says how long it is makes the library believe that, whatever limit it is given.
        if not 1 < length <= MAX_RECORD_BYTES or zstandard.frame_content_size(frame) != length:
            raise SerializationError("A compressed record says that it is longer than it may be.")
        data = zstandard.ZstdDecompressor(max_window_size=2 * MAX_RECORD_BYTES).decompress(
            frame, max_output_size=length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise SerializationError("A compressed record does not decompress.") from error
    if len(data) != length:
        raise SerializationError("A compressed record is not as long as it says.")
    return bytes(data)
