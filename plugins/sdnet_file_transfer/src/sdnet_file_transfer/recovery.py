"""Reading back what a receiver holds of an unfinished transfer (blocking)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blake3 import blake3

from . import beneath
from .journal import Held, item_key
from .messages import Item

__all__ = ["clean_parts", "clean_tree", "hash_file", "part_name", "verify_part"]

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_PART_PREFIX = "part-"
_READ_BYTES = 1 << 20


def part_name(key: bytes) -> str:
    """Where a file that is not complete grows."""
    return _PART_PREFIX + key.hex()


def hash_file(descriptor: int, length: int, hasher: Any, buffer: bytearray, offset: int = 0) -> int:
    """Feed so many bytes of a file to a hash.

    :returns: how many there were.
    """
    view = memoryview(buffer)
    done = 0
    while done < length:
        count = os.preadv(descriptor, [view[: min(len(view), length - done)]], offset + done)
        if not count:
            break
        hasher.update(view[:count])
        done += count
    return done


def clean_tree(tree: int, items: Sequence[Item], expected: Callable[[int], bytes | None]) -> dict[int, bytes]:
    """Remove from the tree of finished files what does not belong there or is not what was noted.

    :param tree: the open directory.
    :param expected: by item, the digest that its file must have; None if it should not be there.
    :returns: the digests of the files that stay, by item.
    """
    if not os.listdir(tree):  # as of every new transfer, which may have very many items
        return {}
    wanted = {item.path: index for index, item in enumerate(items)}
    buffer = bytearray(_READ_BYTES)
    verified: dict[int, bytes] = {}

    def clean(directory: int, above: tuple[str, ...]) -> None:
        with os.scandir(directory) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_directory in found:
            path = (*above, name)
            index = wanted.get(path)
            if index is not None and is_directory and items[index].directory:
                below = beneath.open_directory(name, below=directory)
                try:
                    clean(below, path)
                finally:
                    os.close(below)
                continue
            digest = None if index is None or is_directory else expected(index)
            if index is not None and digest is not None and _matches(directory, name, items[index], digest, buffer):
                verified[index] = digest
            else:
                beneath.remove_tree(name, below=directory)

    clean(tree, ())
    return verified


def _matches(directory: int, name: str, item: Item, digest: bytes, buffer: bytearray) -> bool:
    try:
        descriptor = os.open(name, READ, dir_fd=directory)
    except OSError:
        return False
    try:
        hasher = blake3()
        return (
            os.fstat(descriptor).st_size == item.size
            and hash_file(descriptor, item.size, hasher, buffer) == item.size
            and hasher.digest() == digest
        )
    finally:
        os.close(descriptor)


def clean_parts(staging: int, items: Sequence[Item], held: Held, keep: Callable[[int], bool]) -> Mapping[int, Any]:
    """Verify the part files against the journal, and remove those that are of no use.

    :param keep: whether an item's part may still be needed.
    :returns: by item, its length and the state of the hash over it.
    """
    names = [name for name in os.listdir(staging) if name.startswith(_PART_PREFIX)]
    if not names:
        return {}
    index_of = {part_name(item_key(item)): index for index, item in enumerate(items) if not item.directory}
    verified: dict[int, tuple[int, blake3]] = {}
    for name in names:
        index = index_of.get(name)
        found = None
        if index is not None and keep(index):
            found = verify_part(staging, name, held.parts.get(item_key(items[index]), []))
        if index is None or found is None:
            beneath.remove_tree(name, below=staging)
        else:
            verified[index] = found
    return verified


def verify_part(staging: int, name: str, marks: Sequence[tuple[int, bytes]]) -> tuple[int, blake3] | None:
    """Find how far a part file is what the journal says, and cut it off there.

    :returns: the length and the hash's state; None if nothing of it is of use.
    """
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=staging)
    except OSError:
        return None
    try:
        buffer = bytearray(_READ_BYTES)
        hasher, good, length = blake3(), blake3(), 0
        for mark, digest in marks:
            if hash_file(descriptor, mark - length, hasher, buffer, length) != mark - length:
                break
            if hasher.digest() != digest:
                break
            good, length = hasher.copy(), mark
        if not length:
            return None
        os.ftruncate(descriptor, length)
        return length, good
    finally:
        os.close(descriptor)
