"""Keeps the memory of a process at hand while it rests.

On some virtual machines the same work costs up to twenty times as much after a few seconds of rest as when it is done
again at once, probably since the host takes memory that rests. That counts as the program's own time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["kept_in_memory"]

_EVERY_S = 0.5
_MAX_REGION_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20


@contextmanager
def kept_in_memory(pid: int) -> Iterator[None]:
    """Read all that a process of ours has in memory, twice a second, for the length of the block; costs it nothing.

    Where the system does not let us (Linux does), nothing is done.
    """
    ended = threading.Event()
    reader = threading.Thread(target=_read_again_and_again, args=(pid, ended), daemon=True)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()


def _read_again_and_again(pid: int, ended: threading.Event) -> None:
    block = bytearray(_BLOCK_BYTES)
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    except OSError:
        return
    try:
        while not ended.wait(_EVERY_S):
            for start, end in _regions(pid):
                with suppress(OSError):  # it was unmapped meanwhile
                    for position in range(start, end, _BLOCK_BYTES):
                        os.preadv(memory, [memoryview(block)[: end - position]], position)
    finally:
        os.close(memory)


def _regions(pid: int) -> list[tuple[int, int]]:
    regions = []
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            addresses, permissions = line.split(maxsplit=2)[:2]
            start, end = (int(number, 16) for number in addresses.split("-"))
            if permissions.startswith("r") and end - start <= _MAX_REGION_BYTES and "[v" not in line:
                regions.append((start, end))
    return regions
