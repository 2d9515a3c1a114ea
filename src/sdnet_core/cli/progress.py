"""Progress of what takes time: a bar on a terminal, a plain line every few seconds otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from .text import clean, format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["BarProgress", "LineProgress", "Progress"]

LINE_INTERVAL_S = 3.0


class Progress(Protocol):
    """What ``with cli.progress(...) as progress`` gives."""

    def update(self, done_bytes: int, total_bytes: int | None = None, text: str | None = None) -> None:
        """Say how far it is.

        :param total_bytes: None while it is not known.
        :param text: replaces what stands beside the bar; None leaves it.
        """


class LineProgress(AbstractContextManager["LineProgress"]):
    """Lines for logs and pipes: one at the first update, one every few seconds, one at the end if anything came since.

    :param write: takes each line.
    :param monotonic: the clock for the rate, in seconds.
    """

    def __init__(
        self, write: Callable[[str], None], text: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._text = text
        self._monotonic = monotonic
        self._start: tuple[float, int] | None = None
        self._last_line_at = float("-inf")
        self._pending: tuple[int, int | None] | None = None

    def update(self, done_bytes: int, total_bytes: int | None = None, text: str | None = None) -> None:
        if text is not None:
            self._text = text
        now = self._monotonic()
        self._start = self._start or (now, done_bytes)
        self._pending = (done_bytes, total_bytes)
        if now - self._last_line_at >= LINE_INTERVAL_S:
            self._line(now)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line(self._monotonic())

    def _line(self, now: float) -> None:
        if self._pending is None or self._start is None:
            return
        (done, total), self._pending, self._last_line_at = self._pending, None, now
        parts = [self._text] if self._text else []
        parts.append(
            f"{format_size(done)} of {format_size(total)} ({_percent(done, total)})" if total else format_size(done)
        )
        elapsed_s = now - self._start[0]
        rate = (done - self._start[1]) / elapsed_s if elapsed_s > 0 else 0.0
        if rate > 0:
            parts.append(f"{format_size(rate)}/s")
            if total and total > done:
                parts.append(f"{format_duration((total - done) / rate)} left")
        self._write("  ".join(parts))


class BarProgress(AbstractContextManager["BarProgress"]):
    """A bar with size, rate and time left."""

    def __init__(self, console: Console, text: str, total_bytes: int | None) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(clean(text), total=total_bytes)

    def update(self, done_bytes: int, total_bytes: int | None = None, text: str | None = None) -> None:
        self._progress.update(
            self._task,
            completed=done_bytes,
            total=total_bytes,
            description=None if text is None else clean(text),
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def _percent(done: int, total: int) -> str:
    return f"{min(100, done * 100 // total)} %"
