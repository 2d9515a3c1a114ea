"""The daemon's log: a private file that is rotated, and standard error in the foreground."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import time
from io import TextIOWrapper

from ..config import Config
from ..storage import ensure_private_directory

__all__ = ["PrivateRotatingHandler", "configure_logging"]

# What these libraries say below a warning is about their own insides.
_LIBRARIES = ("anyio", "hypercorn", "libp2p", "multiaddr", "multiformats", "zeroconf")


class PrivateRotatingHandler(logging.handlers.RotatingFileHandler):
    """Rotates by size; every file is for its owner only (0600).

    :param capture_stderr: what goes to standard error, such as the last words of a crash, goes to this file too, also
        after a rotation.
    """

    def __init__(self, filename: str, *, max_bytes: int, backups: int, capture_stderr: bool = False) -> None:
        self._capture_stderr = capture_stderr
        super().__init__(filename, maxBytes=max_bytes, backupCount=backups, encoding="utf-8", errors="backslashreplace")
        self._redirect()

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)

    def doRollover(self) -> None:
        super().doRollover()
        self._redirect()

    def _redirect(self) -> None:
        if self._capture_stderr and self.stream is not None:
            for descriptor in (1, 2):
                os.dup2(self.stream.fileno(), descriptor)


def configure_logging(config: Config, *, foreground: bool) -> list[logging.Handler]:
    """Send every record to the log file.

    :param foreground: also to standard error; otherwise standard error goes to the file.
    :returns: the handlers, to close in the end.
    :raises StorageError: the folder cannot be made.
    :raises OSError: the file cannot be opened.
    """
    ensure_private_directory(config.paths.logs)
    settings = config.log
    handlers: list[logging.Handler] = [
        PrivateRotatingHandler(
            str(config.paths.log_file),
            max_bytes=settings.max_bytes,
            backups=settings.backups,
            capture_stderr=not foreground,
        )
    ]
    if foreground:
        handlers.append(logging.StreamHandler(sys.stderr))
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root = logging.getLogger()
    root.setLevel(level)
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    if level > logging.DEBUG:
        for name in _LIBRARIES:
            logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)
    return handlers
