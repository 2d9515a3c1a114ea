"""What a person or a program is told of a transfer (pure)."""

from __future__ import annotations

import math
import uuid
from enum import StrEnum
from typing import Literal

import msgspec

__all__ = ["FileProblem", "RateMeter", "Transfer", "TransferState"]

MAX_PROBLEMS = 100
"""Most single files named in a snapshot."""


class TransferState(StrEnum):
    """Where a transfer is."""

    QUEUED = "queued"
    """Waits for its turn."""
    WAITING = "waiting"
    """The other device is away; goes on by itself when it comes back."""
    ASKING = "asking"
    """This device's person is asked whether it may come in."""
    PAUSED = "paused"
    """A person here has paused it."""
    OFFERING = "offering"
    """Asks the other device, or reads back what is held already."""
    TRANSFERRING = "transferring"
    VERIFYING = "verifying"
    """Everything was sent; being checked and put in place."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    """The other device did not take it."""

    @property
    def terminal(self) -> bool:
        """Whether nothing will change any more."""
        return self in _TERMINAL


_TERMINAL = frozenset((TransferState.COMPLETED, TransferState.FAILED, TransferState.CANCELLED, TransferState.REJECTED))


class FileProblem(msgspec.Struct, frozen=True):
    """A file or folder that was not sent.

    :param expected: it is a link or a special file, which are never sent; otherwise the transfer counts as failed.
    """

    path: str
    reason: str
    expected: bool


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer as it is at one moment.

    :param direction: ``send`` or ``receive``, seen from here.
    :param purpose: ``send``, or what another plugin gave.
    :param name: what to call it: the one thing that is sent, or how many there are.
    :param items: how many files there are; folders are not counted.
    :param paths: at the sender, what was named; at the receiver, what it was put under when it is done.
    :param destination: folder at the receiver; empty at the sender.
    :param origin: what was asked for with `SharedFolders.get`, as ``share/path``; empty for all others.
    :param rate: bytes a second, averaged over the last seconds; 0 when nothing moves.
    :param eta_s: seconds left at that rate; None when that cannot be told.
    :param reason: why it waits, failed, was cancelled or rejected.
    :param problems: files that were not sent, at most 100 of them.
    :param resumable: what has arrived is kept: sending the same again goes on from there.
    :param created_at: seconds since the epoch.
    """

    id: uuid.UUID
    direction: Literal["send", "receive"]
    device_id: uuid.UUID
    device_name: str
    purpose: str
    state: TransferState
    name: str = ""
    items: int = 0
    done_items: int = 0
    total_bytes: int = 0
    done_bytes: int = 0
    rate: float = 0.0
    eta_s: float | None = None
    paths: tuple[str, ...] = ()
    destination: str = ""
    origin: str = ""
    reason: str = ""
    problems: tuple[FileProblem, ...] = ()
    resumable: bool = False
    created_at: float = 0.0
    ended_at: float | None = None


class RateMeter:
    """Averages a rate so that it neither jumps nor lags: exponentially weighted, over ``window_s`` seconds."""

    def __init__(self, *, window_s: float = 3.0) -> None:
        self._window_s = window_s
        self._last: tuple[float, int] | None = None
        self._average = 0.0
        self._weight = 0.0

    def update(self, at_s: float, done_bytes: int) -> float:
        """Tell how far it is.

        :param at_s: on a clock that does not jump.
        :returns: bytes a second. The first call only sets the mark, so what was held before does not count.
        """
        if self._last is None:
            self._last = (at_s, done_bytes)
            return 0.0
        elapsed = at_s - self._last[0]
        if elapsed <= 0:
            return self.rate
        keep = math.exp(-elapsed / self._window_s)
        self._average = keep * self._average + (1 - keep) * max(0.0, (done_bytes - self._last[1]) / elapsed)
        self._weight = keep * self._weight + (1 - keep)
        self._last = (at_s, done_bytes)
        return self.rate

    @property
    def rate(self) -> float:
        """Bytes a second; 0 before there is anything to tell."""
        return self._average / self._weight if self._weight else 0.0
