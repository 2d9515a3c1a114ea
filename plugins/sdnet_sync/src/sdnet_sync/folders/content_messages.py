"""What devices say to each other on ``/sdnet/sync-content/1``; the specification is ``docs/protocol/sync.md``.

One side asks, the other answers each request in turn; several requests may be under way.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from sdnet_core.wire import Bytes16, Bytes32, Message

from .contents import HASH_BYTES, MAX_BLOCK_BYTES, MAX_FILE_BYTES, MIN_BLOCK_BYTES

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_BLOCKS",
    "MAX_CONTENT_FRAME_BYTES",
    "MAX_FILES",
    "PROTOCOL_NAME",
    "RECIPE_PAGE",
    "AnyContentAnswer",
    "AnyContentRequest",
    "Block",
    "Files",
    "GetBlocks",
    "GetFiles",
    "GetRecipe",
    "Gone",
    "Recipe",
]

PROTOCOL_NAME = "sync-content"
MAX_FILES = 1024
"""Small files asked for at once."""
MAX_BLOCKS = 64
"""Blocks of a file asked for at once."""
RECIPE_PAGE = 16384
"""Hashes in one part of a recipe."""
MAX_ANSWER_BYTES = 1 << 20
MAX_CONTENT_FRAME_BYTES = MAX_ANSWER_BYTES + (64 << 10)

_Size = Annotated[int, Meta(ge=0, le=MAX_FILE_BYTES)]
_Number = Annotated[int, Meta(ge=0, le=MAX_FILE_BYTES // MIN_BLOCK_BYTES)]


class GetFiles(Message, frozen=True, kw_only=True, tag=64):
    """Give me these files of one block. Answered by `Files`, as many as it takes."""

    library: Bytes16
    digests: Annotated[tuple[Bytes32, ...], Meta(min_length=1, max_length=MAX_FILES)]


class GetRecipe(Message, frozen=True, kw_only=True, tag=65):
    """Give me hashes of the blocks of this file. Answered by `Recipe` or `Gone`.

    :param first: the first block whose hash is wanted.
    """

    library: Bytes16
    digest: Bytes32
    first: _Number


class GetBlocks(Message, frozen=True, kw_only=True, tag=66):
    """Give me these blocks of this file. Answered by a `Block` for each, or by `Gone` in the place of the first that
    cannot be had.

    :param size: of the file, bytes.
    """

    library: Bytes16
    digest: Bytes32
    size: _Size
    blocks: Annotated[tuple[_Number, ...], Meta(min_length=1, max_length=MAX_BLOCKS)]


class Files(Message, frozen=True, kw_only=True, tag=80):
    """The next of the files asked for, in their order.

    :param contents: None for those that cannot be had here now.
    """

    contents: Annotated[
        tuple[Annotated[bytes, Meta(max_length=MIN_BLOCK_BYTES)] | None, ...], Meta(min_length=1, max_length=MAX_FILES)
    ]


class Recipe(Message, frozen=True, kw_only=True, tag=81):
    """Hashes of blocks, 32 bytes each; the last part is shorter than 16,384 hashes."""

    hashes: Annotated[bytes, Meta(max_length=RECIPE_PAGE * HASH_BYTES)]


class Block(Message, frozen=True, kw_only=True, tag=82):
    """One block."""

    data: Annotated[bytes, Meta(max_length=MAX_BLOCK_BYTES)]


class Gone(Message, frozen=True, kw_only=True, tag=83):
    """It cannot be had here now."""


AnyContentRequest = GetFiles | GetRecipe | GetBlocks
AnyContentAnswer = Files | Recipe | Block | Gone
