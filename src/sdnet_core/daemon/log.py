"""The daemon's log: a private file that is rotated, standard error in the foreground, a level for each component."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Mapping
from io import TextIOWrapper
from typing import Any

from ..config import Config
from ..errors import InvalidRequestError
from ..log_lines import CORE_COMPONENTS, LEVELS, LIBRARIES, HumanFormatter, JsonFormatter, component_of, loggers_of
from ..storage import ensure_private_directory

__all__ = ["DaemonLog", "PrivateRotatingHandler", "configure_logging"]


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
        if not self.backupCount:  # the base class would go on in the same file for ever
            os.truncate(self.baseFilename, 0)
        super().doRollover()
        self._redirect()

    def _redirect(self) -> None:
        if self._capture_stderr and self.stream is not None:
            for descriptor in (1, 2):
                os.dup2(self.stream.fileno(), descriptor)


class DaemonLog:
    """The log of a running node: where it goes, and the levels, which can be changed while it runs.

    :param handlers: to close in the end.
    """

    def __init__(self, config: Config, handlers: list[logging.Handler]) -> None:
        self.handlers = handlers
        self._file = config.paths.log_file
        self._format = config.log.format
        self._level = config.log.level
        self._levels = dict(pair.split("=", 1) for pair in config.log.levels)
        self._known = {*CORE_COMPONENTS, *LIBRARIES}
        self._apply()

    def describe(self) -> dict[str, Any]:
        """Plain values: ``file``, ``format``, ``level``, ``levels`` and ``components``."""
        return {
            "file": str(self._file),
            "format": self._format,
            "level": self._level,
            "levels": dict(sorted(self._levels.items())),
            "components": sorted(self._components()),
        }

    def change(self, level: str | None, levels: Mapping[str, str | None]) -> None:
        """Change levels until the node stops.

        :param level: of everything that has none of its own; None to leave it.
        :param levels: of components; None takes one's own away.
        :raises InvalidRequestError: there is no such level or component.
        """
        for value in (level, *levels.values()):
            if value is not None and value not in LEVELS:
                raise InvalidRequestError(f"{value!r} is no level; there are {', '.join(LEVELS)}.")
        if unknown := sorted(levels.keys() - self._components()):
            raise InvalidRequestError(
                f"Nothing logs as {unknown[0]!r}. Components are: {', '.join(sorted(self._components()))}."
            )
        self._level = level or self._level  # type: ignore[assignment]
        for component, value in levels.items():
            if value is None:
                self._levels.pop(component, None)
                self._set(component, logging.NOTSET)
            else:
                self._levels[component] = value
        self._apply()

    def close(self) -> None:
        """Write no more."""
        logging.captureWarnings(False)
        for handler in self.handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
        for component in (*CORE_COMPONENTS, *LIBRARIES, *self._levels):
            self._set(component, logging.NOTSET)

    def warn_of_unknown(self) -> None:
        """Say in the log which configured components do not exist; once everything that logs is loaded."""
        for component in sorted(self._levels.keys() - self._components()):
            logging.getLogger(__name__).warning(
                "the settings name a log level of %r; there are: %s", component, ", ".join(sorted(self._components()))
            )

    def _components(self) -> set[str]:
        return self._known | {component_of(name) for name in logging.getLogger().manager.loggerDict}

    def _apply(self) -> None:
        logging.getLogger().setLevel(self._level.upper())
        # The packages of the core each have a level, so that one that is set on "core" is not theirs.
        for component in CORE_COMPONENTS:
            self._set(component, self._level.upper())
        at_least = max(logging.WARNING, logging.getLevelNamesMapping()[self._level.upper()])
        for component in LIBRARIES:
            self._set(component, at_least)
        for component, level in self._levels.items():
            self._set(component, level.upper())

    @staticmethod
    def _set(component: str, level: str | int) -> None:
        for name in loggers_of(component):
            logging.getLogger(name).setLevel(level)


def configure_logging(config: Config, *, foreground: bool) -> DaemonLog:
    """Send every record to the log file.

    :param foreground: also to standard error; otherwise standard error goes to the file.
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
    formatter = JsonFormatter() if settings.format == "json" else HumanFormatter()
    for handler in handlers:
        handler.setFormatter(formatter)
        logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    return DaemonLog(config, handlers)
