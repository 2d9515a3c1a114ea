"""Brings a store that an older version of sdnet wrote to the format of this one.

The sealed file ``format`` holds the number of the store's format; a store without it has the first one. A migration

1. keeps the store as it is in ``network.v<number>`` beside it: hard links, so that this takes no room at first;
2. rewrites what the new format has differently, file by file, each in one step and in both generations;
3. stores the new number.

It is begun anew at the next start if it is cut short; what was rewritten before is recognised. Of what is later deleted
or replaced for good, such as a revoked device, nothing stays in the kept store either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sdnet_core.errors import SerializationError, StorageError
from sdnet_core.storage.envelope import NewerFormatError
from sdnet_core.storage.secure import SecureStorage
from sdnet_core.wire import Message, decode, encode

__all__ = ["Step", "mark_format", "migrate"]

logger = logging.getLogger(__name__)

FORMAT_NAME = "format"
FIRST_FORMAT = 1


class _StoredFormat(Message, frozen=True, kw_only=True, tag=1):
    """The sealed file ``format``; later versions may add to it, and then raise the number."""

    number: int


@dataclass(frozen=True, slots=True)
class Step:
    """What makes a format of the one before it.

    :param folder: whose files are rewritten.
    :param convert: gives a file's new contents, or None if it has them already.
    """

    folder: str
    convert: Callable[[bytes], bytes | None]


async def migrate(storage: SecureStorage, current: int, steps: Mapping[int, Step]) -> int:
    """Bring a store to the current format.

    :param steps: by the format that they start from.
    :returns: the format it had; ``current`` for one that is new.
    :raises NewerFormatError: it was written by a newer version; nothing was changed.
    :raises StorageError: it cannot be read or written; the next start goes on.
    """
    stored = await _stored_format(storage)
    if stored is None:
        stored = FIRST_FORMAT if await storage.list() else current
    if stored > current:
        raise NewerFormatError(
            f"The data in {storage.root} have format {stored}; this version of sdnet reads up to {current}. "
            "Update sdnet. Nothing was changed."
        )
    for number in range(stored, current):
        kept = storage.root.with_name(f"{storage.root.name}.v{number}")
        logger.info("the store's format %d becomes %d; it is kept in %s", number, number + 1, kept)
        await storage.keep(kept)
        step = steps[number]
        await storage.convert(step.folder, step.convert)
        await mark_format(storage, number + 1)
    return stored


async def mark_format(storage: SecureStorage, number: int) -> None:
    """Store which format a store has, if it does not say so yet."""
    if await _stored_format(storage) != number:
        await storage.store(FORMAT_NAME, encode(_StoredFormat(number=number)), both_generations=True)


async def _stored_format(storage: SecureStorage) -> int | None:
    data = await storage.load(FORMAT_NAME)
    if data is None:
        return None
    try:
        return decode(data, _StoredFormat).number
    except SerializationError as error:
        raise StorageError(f"The file {FORMAT_NAME} in {storage.root} opens but names no format: {error}") from error
