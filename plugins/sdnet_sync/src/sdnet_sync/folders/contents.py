"""What identifies a file's contents: BLAKE3 of its blocks, and of the list of these.

A file is cut into blocks of a size that follows from its own. Its *recipe* is the BLAKE3 hashes of its blocks, one
after the other, and its *digest* is the hash of the recipe; for a file of one block, the hash of the block itself. So
whoever knows the digest can check a recipe from anywhere, and with the recipe every block by itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from blake3 import blake3

from sdnet_core.errors import TryLaterError

__all__ = [
    "HASH_BYTES",
    "MAX_BLOCK_BYTES",
    "MAX_FILE_BYTES",
    "MIN_BLOCK_BYTES",
    "ChangedWhileReadError",
    "Contents",
    "block_count",
    "block_size",
    "digest_of",
    "hash_block",
    "read_block",
    "read_contents",
]

HASH_BYTES = 32
MIN_BLOCK_BYTES = 128 << 10
MAX_BLOCK_BYTES = 1 << 20
_BLOCKS_AIMED_AT = 4096
MAX_FILE_BYTES = 1 << 44
"""Longest file, 16 TiB: its recipe is 512 MiB."""


class ChangedWhileReadError(TryLaterError):
    """A file changed while it was read: what was read never was its contents."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What was found in a file.

    :param recipe: the hashes of its blocks; for a file of one block the digest itself.
    """

    digest: bytes
    recipe: bytes
    size: int


def block_size(size: int) -> int:
    """How long the blocks of a file of ``size`` bytes are: a power of two, for at most 4,096 blocks up to 4 GiB."""
    block = MIN_BLOCK_BYTES
    while block < MAX_BLOCK_BYTES and block * _BLOCKS_AIMED_AT < size:
        block *= 2
    return block


def block_count(size: int) -> int:
    """How many blocks a file of ``size`` bytes has; an empty one has one."""
    return max(1, -(-size // block_size(size)))


def hash_block(data: bytes | memoryview) -> bytes:
    """The hash of one block."""
    return blake3(data).digest()


def digest_of(recipe: bytes) -> bytes:
    """The digest of the file with this recipe."""
    return recipe if len(recipe) == HASH_BYTES else blake3(recipe).digest()


def read_block(descriptor: int, size: int, index: int) -> bytes:
    """One block of a file.

    :param size: how long the file should be.
    :raises ChangedWhileReadError: it is shorter by now.
    """
    length = block_size(size)
    offset = index * length
    wanted = min(length, size - offset)
    data = os.pread(descriptor, wanted, offset)
    while len(data) < wanted:
        more = os.pread(descriptor, wanted - len(data), offset + len(data))
        if not more:
            raise ChangedWhileReadError("A file became shorter while it was read.")
        data += more
    return data


def read_contents(descriptor: int) -> tuple[Contents, os.stat_result]:
    """Read a whole file.

    :returns: its contents, and its status, the same before and after.
    :raises ChangedWhileReadError: somebody wrote to it meanwhile.
    :raises OSError: it cannot be read.
    """
    before = os.fstat(descriptor)
    size = before.st_size
    recipe = b"".join(hash_block(read_block(descriptor, size, index)) for index in range(block_count(size)))
    after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    ):
        raise ChangedWhileReadError("A file changed while it was read.")
    return Contents(digest_of(recipe), recipe, size), after
