"""Hears from the system what changes in a folder."""

from __future__ import annotations

import logging
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from watchfiles import awatch

from .tree import PRIVATE

if TYPE_CHECKING:
    from .folder import Folder

__all__ = ["watch_folder"]

logger = logging.getLogger(__name__)

DEBOUNCE_MS, STEP_MS, STOP_MS = 200, 20, 200
_POLLS_FOR_WATCH = 30
"""While the system does not tell, it is asked again after so many polls."""


async def watch_folder(folder: Folder) -> None:
    """Tell a folder what may have changed in it, until cancelled.

    Where the system does not tell (too many folders, a network disk), the folder is read anew every few seconds.
    """
    poll_s = folder.host.settings.poll_s
    while True:
        if folder.present:
            try:
                async with folder.host.watching():
                    await _watch(folder)
            except (OSError, RuntimeError) as error:
                logger.warning("%s is read anew every %.0f s: %s", folder.record.path, poll_s, error)
                for _ in range(_POLLS_FOR_WATCH):
                    await anyio.sleep(poll_s)
                    folder.rescan()
                continue
        await anyio.sleep(0.2)


async def _watch(folder: Folder) -> None:
    root = Path(folder.record.path)
    stop = anyio.Event()
    # What changed before the system began to tell.
    first = True
    changes = awatch(
        root,
        watch_filter=None,
        debounce=DEBOUNCE_MS,
        step=STEP_MS,
        rust_timeout=STOP_MS,
        yield_on_timeout=True,
        stop_event=stop,
        ignore_permission_denied=True,
    )
    async with aclosing(changes):
        async for batch in changes:
            if not folder.present:
                return
            if first:
                first = False
                folder.rescan()
            paths = []
            for _, path in batch:
                relative = path.removeprefix(f"{root}/")
                if relative == path:  # the folder itself
                    folder.wake()
                elif relative != PRIVATE and not relative.startswith(f"{PRIVATE}/"):
                    paths.append(relative)
            if paths:
                folder.changed_here(paths)
