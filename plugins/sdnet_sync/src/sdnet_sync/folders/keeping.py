"""What was replaced or deleted in a mirror: brought back, or let go in the end (blocking)."""

from __future__ import annotations

from sdnet_core.errors import ConflictError, StorageError
from sdnet_file_transfer import numbered

from .index import Index, Kept
from .tree import Tree

__all__ = ["bring_back", "expire"]


def bring_back(tree: Tree, index: Index, kept: Kept) -> str:
    """Put a file that was kept back, or beside what lies there now.

    :returns: where it is.
    :raises StorageError: it cannot be brought back.
    """
    folder, _, name = kept.path.rpartition("/")
    for number in range(100):
        path = f"{folder}/{numbered(name, number)}".lstrip("/")
        try:
            tree.restore(kept.place, path)
        except ConflictError:
            continue
        except OSError as error:
            raise StorageError(f"{kept.path} cannot be brought back: {error.strerror}.") from error
        index.forget([kept.number])
        return path
    raise StorageError(f"{kept.path} cannot be brought back: too many files have its name.")


def expire(tree: Tree, index: Index, before: float, versions: int) -> None:
    """Delete what need not be kept any longer.

    :param before: what was kept before this time, seconds since the epoch.
    :param versions: so many replaced versions of a file stay.
    """
    while expired := index.expired(before=before, versions=versions):
        for kept in expired:
            tree.forget(kept.place)
        index.forget(kept.number for kept in expired)
    index.prune_recipes()
