"""The private folder of an unfinished transfer, and what can go wrong with the disk it is on (blocking)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from sdnet_core.errors import NetworkingError, StorageError

from . import beneath
from .names import STAGING_PREFIX

__all__ = ["DiskFullError", "explained", "remove_staging", "staging_name"]


class DiskFullError(StorageError):
    """There is not enough room for what was sent."""

    code = "disk-full"


def staging_name(transfer_id_hex: str) -> str:
    """The folder that holds an unfinished transfer, beside its destination."""
    return STAGING_PREFIX + transfer_id_hex


def remove_staging(destination: Path, name: str) -> None:
    """Remove what is left of a transfer.

    :raises StorageError: it cannot be removed.
    """
    with explained(destination, "removed"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        top = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            beneath.remove_tree(name, below=top)
        finally:
            os.close(top)


@contextlib.contextmanager
def explained(place: Path, done: str) -> Iterator[None]:
    """Turn the system's errors into ours, with a sentence for the person."""
    try:
        yield
    except NetworkingError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"The disk that holds {place} is full.") from error
        if error.errno == errno.EFBIG:
            raise StorageError(f"A file is larger than {place} can take.") from error
        reason = error.strerror or type(error).__name__
        raise StorageError(f"What was sent could not be {done} in {place}: {reason}.") from error
