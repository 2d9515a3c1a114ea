"""The audit log: what happened that is of concern for security, in files that are only ever added to.

Every event whose class says ``audited`` becomes a line of JSON in ``audit.log`` in the data directory (0600): its
number ``n``, its ``at`` and ``kind``, the event's fields, and a ``mac`` that chains it to all lines before it. Events
carry no secrets. A full file becomes ``audit.log.1`` and so on; the oldest is removed. Where the log ends is also kept
in the sealed store, so that lines missing at its end are noticed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskStatus

from .clock import Clock, Runner
from .errors import StorageError
from .events import NetworkEvent
from .storage import DamagedError, SecureStorage
from .storage.atomic import read_bounded, remove_durably
from .storage.chained import MAC_BYTES, Chain, append_durably
from .wire import Message, decode, encode
from .wording import format_count

__all__ = ["AuditLog", "AuditReport"]

logger = logging.getLogger(__name__)

FILE_NAME = "audit.log"
ANCHOR_NAME = "audit-end"
MAX_FILE_BYTES = 1 << 20
KEPT_FILES = 4
"""Full files kept beside the current one."""
ANCHOR_EVERY_S = 60.0
OWN_KINDS = frozenset({"audit-damaged", "audit-dropped", "audit-opened"})
"""Of lines that tell of the log itself, and are no events."""
MAX_QUEUED = 4096
_MAX_READ_BYTES = 64 << 20


class _Anchor(Message, frozen=True, kw_only=True, tag=1):
    """Where the log ended."""

    number: int
    mac: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What checking the log found.

    :param lines: that are right.
    :param first: number of the first line there; older ones were removed by rotation.
    :param problems: what is wrong, one sentence each; empty if nothing is.
    """

    lines: int
    first: int
    problems: tuple[str, ...]


class AuditLog:
    """The audit log of one node.

    :param directory: where its files go.
    :param key: 32 bytes, from `Vault.subkey`.
    :param storage: the node's sealed store, for where the log ends.
    :param max_file_bytes: size at which a file counts as full.
    """

    def __init__(
        self,
        directory: Path,
        key: bytes,
        storage: SecureStorage,
        *,
        clock: Clock,
        runner: Runner,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self._path = directory / FILE_NAME
        self._key = key
        self._storage = storage
        self._clock = clock
        self._runner = runner
        self._max_file_bytes = max_file_bytes
        self._chain: Chain | None = None
        self._anchored = (float("-inf"), 0)
        self._queue: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._taken = self._written = 0
        self._wake = anyio.Event()
        self._progress = anyio.Event()
        self._running = False

    @property
    def path(self) -> Path:
        """The current file."""
        return self._path

    # Writing

    def take(self, event: NetworkEvent) -> None:
        """Log an event, if it is one to be logged. Returns at once; see `flush`."""
        if not event.audited:
            return
        if len(self._queue) >= MAX_QUEUED:
            self._dropped += 1
            return
        values = event.to_dict()
        self._queue.append({"at": values.pop("at"), "kind": values.pop("kind"), **values})
        self._taken += 1
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything taken so far is on disk, or could not be written (which the program's log tells)."""
        until = self._taken
        while self._running and self._written < until:
            await self._progress.wait()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Write what is taken until cancelled, and what is left then."""
        await self._open()
        self._running = True
        task_status.started()
        try:
            while True:
                while self._queue:
                    await self._write_batch()
                self._wake = anyio.Event()
                if not self._queue:
                    await self._wake.wait()
        finally:
            self._running = False
            with anyio.CancelScope(shield=True):
                while self._queue:
                    await self._write_batch()
                await self._anchor(always=True)
            self._notify()

    async def _write_batch(self) -> None:
        batch, self._queue = list(self._queue), deque()
        if self._dropped:
            batch.append({"at": self._clock.now(), "kind": "audit-dropped", "count": self._dropped})
            self._dropped = 0
        try:
            await self._runner(self._append, batch)
        except StorageError as error:
            logger.error("%s of the audit log lost: %s", format_count(len(batch), "line"), error)
        self._written = self._taken - len(self._queue)
        await self._anchor()
        self._notify()

    def _append(self, batch: list[dict[str, Any]]) -> None:
        assert self._chain is not None
        chain = self._chain.copy()
        if self._size() == 0:
            lines = [self._opening(chain)]
        elif self._size() >= self._max_file_bytes:
            self._rotate()
            lines = [self._opening(chain)]
        else:
            lines = []
        lines += [chain.append(values) for values in batch]
        append_durably(self._path, b"".join(lines))
        self._chain = chain

    def _opening(self, chain: Chain) -> bytes:
        """The first line of a file, which says where the file before it ended."""
        previous = {"number": chain.number, "mac": chain.mac.hex()}
        chain.mac = bytes(MAC_BYTES)
        return chain.append({"at": self._clock.now(), "kind": "audit-opened", "previous": previous})

    def _rotate(self) -> None:
        remove_durably(self._older(KEPT_FILES))
        for number in range(KEPT_FILES - 1, -1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._older(number), self._older(number + 1))

    def _older(self, number: int) -> Path:
        return self._path if number == 0 else self._path.with_name(f"{FILE_NAME}.{number}")

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    async def _open(self) -> None:
        """Go on where the log ends; what is not right there stays as it is, and the log says so in a new file."""
        anchor = await self._read_anchor()
        self._chain, damage = await self._runner(self._find_end, anchor)
        if damage:
            logger.warning("the audit log %s: %s", self._path, damage)
            self._queue.appendleft({"at": self._clock.now(), "kind": "audit-damaged", "detail": damage})
            self._taken += 1

    def _find_end(self, anchor: _Anchor) -> tuple[Chain, str]:
        chain, problems = Chain(self._key), []
        for path in (self._older(1), self._path):
            checked = self._check_file(path)
            if checked.lines:
                chain = checked.chain
            if checked.problem:
                problems.append(checked.problem)
        if problems or self._missing(chain, anchor):
            problems += self._missing(chain, anchor)
            if self._size():
                self._rotate()
            return Chain(self._key, number=max(chain.number, anchor.number), mac=chain.mac), " ".join(problems)
        return chain, ""

    def _missing(self, chain: Chain, anchor: _Anchor) -> list[str]:
        if chain.number < anchor.number:
            return [f"The lines {chain.number + 1} to {anchor.number} at its end are missing."]
        if chain.number == anchor.number and anchor.number and chain.mac != anchor.mac:
            return ["Its end is not the one that was written."]
        return []

    async def _read_anchor(self) -> _Anchor:
        try:
            data = await self._storage.load(ANCHOR_NAME)
            return _Anchor(number=0, mac=b"") if data is None else decode(data, _Anchor)
        except StorageError as error:
            logger.warning("where the audit log ended is lost: %s", error)
            return _Anchor(number=0, mac=b"")

    async def _anchor(self, *, always: bool = False) -> None:
        assert self._chain is not None
        at, number = self._anchored
        if self._chain.number == number or not (always or self._clock.monotonic() - at >= ANCHOR_EVERY_S):
            return
        try:
            await self._storage.store(ANCHOR_NAME, encode(_Anchor(number=self._chain.number, mac=self._chain.mac)))
            self._anchored = (self._clock.monotonic(), self._chain.number)
        except StorageError as error:
            logger.warning("where the audit log ends could not be stored: %s", error)

    def _notify(self) -> None:
        progress, self._progress = self._progress, anyio.Event()
        progress.set()

    # Reading

    async def read(self, *, since: float = 0.0, limit: int | None = None) -> list[dict[str, Any]]:
        """The lines, oldest first, without their MACs.

        :param since: leave out what is older, seconds since the epoch.
        :param limit: only the newest so many.
        :raises StorageError: a file cannot be read.
        """
        await self.flush()
        lines = await self._runner(self._read)
        found = [line for line in lines if float(line.get("at", 0)) >= since]
        return found if limit is None else found[max(0, len(found) - limit) :]

    def follow(self, *, since: float = 0.0) -> AsyncIterator[dict[str, Any]]:
        """The lines from ``since`` on, and then each as it is written, until the node stops."""
        return _Follower(self, since)

    async def verify(self) -> AuditReport:
        """Check every line that is there against the chain.

        :raises StorageError: a file cannot be read.
        """
        await self.flush()
        anchor = await self._read_anchor()
        return await self._runner(self._verify, anchor)

    def _verify(self, anchor: _Anchor) -> AuditReport:
        problems: list[str] = []
        lines = first = 0
        before: Chain | None = None
        for number in range(KEPT_FILES, -1, -1):
            checked = self._check_file(self._older(number))
            if checked.problem:
                problems.append(checked.problem)
            if not checked.lines:
                continue
            first = first or checked.first
            if before is not None and checked.previous != (before.number, before.mac.hex()):
                problems.append(f"{self._older(number)} does not go on where the file before it ends.")
            lines += checked.lines
            before = checked.chain
        if before is not None:
            problems += [f"{self._path}: {text}" for text in self._missing(before, anchor)]
        elif anchor.number:
            problems.append(f"{self._path} is missing, with its {format_count(anchor.number, 'line')}.")
        return AuditReport(lines=lines, first=first, problems=tuple(problems))

    def _check_file(self, path: Path) -> _Checked:
        try:
            data = read_bounded(path, _MAX_READ_BYTES)
        except DamagedError as error:
            return _Checked(Chain(self._key), problem=f"{path} cannot be read: {error}")
        chain, checked = Chain(self._key), _Checked(Chain(self._key))
        for index, line in enumerate((data or b"").split(b"\n")):
            if not line:
                continue
            try:
                if index == 0:
                    chain.number = _number(line) - 1
                values = chain.take(line)
            except DamagedError as error:
                checked.problem = f"{path}, line {index + 1}: {error}"
                break
            if index == 0:
                checked.first = chain.number
                checked.previous = _previous(values)
            checked.lines += 1
            checked.chain = chain.copy()
        if data and not checked.problem and not data.endswith(b"\n"):
            checked.problem = f"{path} ends in an unfinished line."
        return checked

    def _read(self) -> list[dict[str, Any]]:
        found = []
        for number in range(KEPT_FILES, -1, -1):
            for line in (read_bounded(self._older(number), _MAX_READ_BYTES) or b"").split(b"\n"):
                with contextlib.suppress(msgspec.DecodeError):
                    values = msgspec.json.decode(line, type=dict[str, Any])
                    values.pop("mac", None)
                    if isinstance(values.get("n"), int):
                        found.append(values)
        return found


class _Follower(AsyncIterator[dict[str, Any]]):
    def __init__(self, log: AuditLog, since: float) -> None:
        self._log = log
        self._since = since
        self._seen = 0
        self._lines: deque[dict[str, Any]] = deque()

    async def __anext__(self) -> dict[str, Any]:
        while not self._lines:
            progress, running = self._log._progress, self._log._running
            self._lines.extend(line for line in await self._log.read(since=self._since) if line["n"] > self._seen)
            if self._lines:
                self._seen = self._lines[-1]["n"]
            elif running:
                await progress.wait()
            else:
                raise StopAsyncIteration
        return self._lines.popleft()


@dataclass(slots=True)
class _Checked:
    """What checking a file found.

    :param chain: after its last good line.
    :param previous: number and MAC of the last line of the file before it, as its first line says.
    """

    chain: Chain
    lines: int = 0
    first: int = 0
    previous: tuple[int, str] = (0, "")
    problem: str = ""


def _number(line: bytes) -> int:
    with contextlib.suppress(msgspec.DecodeError):
        number = msgspec.json.decode(line, type=dict[str, Any]).get("n")
        if isinstance(number, int):
            return number
    raise DamagedError("It is not a line of JSON with a number.")


def _previous(values: Mapping[str, Any]) -> tuple[int, str]:
    found = values.get("previous")
    if not isinstance(found, dict):
        return 0, ""
    return int(found.get("number", 0)), str(found.get("mac", ""))
