"""What every benchmark uses: child processes that are told what to do, interleaved rounds, medians.

A benchmark is a set of cases. In each case every contender (a stack, a library, a bare socket) runs in processes of
its own; the contenders take turns, round by round, so that what else the machine does meets all of them alike, and
what is compared are medians of the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

__all__ = ["ROOT", "BenchmarkError", "Figures", "Pair", "Peer", "Ratio", "pairs", "rotated"]

ROOT = Path(__file__).resolve().parent.parent
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_START_S = 60.0
_STOP_S = 5.0


class BenchmarkError(Exception):
    """A child process failed; the message holds what it said."""


class Peer:
    """A child process that runs one side of a benchmark.

    :param module: the module to run; it calls :func:`benchmarks.child.serve_commands`.
    :param arguments: its command line.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._name = " ".join([module.rpartition(".")[2], *arguments])
        self._process: anyio.abc.Process | None = None
        self._errors: IO[bytes] | None = None
        self._answers: BufferedByteReceiveStream | None = None

    async def __aenter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        self._process = await anyio.open_process(self._command, stderr=self._errors, cwd=ROOT)
        assert self._process.stdout is not None
        self._answers = BufferedByteReceiveStream(self._process.stdout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._errors is not None
        with anyio.CancelScope(shield=True):
            # The end of its input is the child's sign to end.
            await self._process.stdin.aclose()
            for insist in (self._process.terminate, self._process.kill):
                with anyio.move_on_after(_STOP_S):
                    await self._process.wait()
                if self._process.returncode is not None:
                    break
                insist()
            await self._process.aclose()
            self._errors.close()

    async def call(self, command: str, *, timeout_s: float = 120.0, **arguments: Any) -> Any:
        """Have the child do something and wait for its answer.

        :raises BenchmarkError: it failed, ended, or did not answer in time.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._answers is not None
        try:
            with anyio.fail_after(timeout_s):
                await self._process.stdin.send(json.dumps({"do": command, **arguments}).encode() + b"\n")
                line = await self._answers.receive_until(b"\n", _MAX_ANSWER_BYTES)
        except TimeoutError:
            raise self._failed(f"did not answer `{command}` within {timeout_s:g} s") from None
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise self._failed(f"ended during `{command}`") from None
        answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self._name}: `{command}` failed\n{answer['error']}")
        return answer["answer"]

    def _failed(self, what: str) -> BenchmarkError:
        assert self._errors is not None
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4000))
        said = self._errors.read().decode(errors="replace").strip()
        return BenchmarkError(f"{self._name} {what}\n{said}")


@dataclass(frozen=True, slots=True)
class Pair:
    """The two processes of one contender.

    :param listener: the side that is connected to.
    :param dialler: the side that connects and measures.
    :param hello: what the listener told when it was ready.
    """

    listener: Peer
    dialler: Peer
    hello: Mapping[str, Any]

    async def both(self, command: str, **arguments: Any) -> tuple[Any, Any]:
        """Have both sides do something, the listener first; returns the listener's and the dialler's answer."""
        return await self.listener.call(command, **arguments), await self.dialler.call(command, **arguments)


@asynccontextmanager
async def pairs(module: str, contenders: Sequence[str]) -> AsyncIterator[dict[str, Pair]]:
    """Start the two processes of each contender: ``module <contender> listen`` and ``module <contender> dial``.

    Both answer ``hello``. When the block is left, all have ended.
    """
    peers = {(name, role): Peer(module, name, role) for name in contenders for role in ("listen", "dial")}
    hellos: dict[tuple[str, str], Any] = {}

    async def greet(key: tuple[str, str]) -> None:
        hellos[key] = await peers[key].call("hello", timeout_s=_START_S)

    async with _all(list(peers.values())):
        try:
            async with anyio.create_task_group() as group:
                for key in peers:
                    group.start_soon(greet, key)
        except ExceptionGroup as exc:
            raise exc.exceptions[0] from None
        yield {
            name: Pair(peers[name, "listen"], peers[name, "dial"], hellos[name, "listen"] or {}) for name in contenders
        }


@asynccontextmanager
async def _all(peers: Sequence[Peer]) -> AsyncIterator[None]:
    """Enter every peer, and leave all of them at once."""
    entered: list[Peer] = []
    try:
        for peer in peers:
            entered.append(await peer.__aenter__())
        yield
    finally:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for peer in entered:
                    group.start_soon(peer.__aexit__, None, None, None)


def rotated(contenders: Sequence[str], round_number: int) -> list[str]:
    """The contenders in another order each round."""
    at = round_number % len(contenders)
    return [*contenders[at:], *contenders[:at]]


@dataclass(slots=True)
class Figures:
    """What was measured: ``case → contender → figure → values of the rounds``, and the units of the figures."""

    rounds: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def add(self, case: str, contender: str, unit_of: Mapping[str, str], **values: float) -> None:
        """Add one round's values.

        :param unit_of: the unit of each figure.
        """
        for name, value in values.items():
            self.units[name] = unit_of[name]
            self.rounds.setdefault(case, {}).setdefault(contender, {}).setdefault(name, []).append(value)

    def median(self, case: str, contender: str, figure: str) -> float | None:
        """The median of the rounds, or None if that was not measured."""
        values = self.rounds.get(case, {}).get(contender, {}).get(figure)
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One figure over another; ``at_least`` or ``at_most`` say where it should be, if that was decided.

    :param of: (case, contender, figure) above the line.
    :param to: the same below it.
    """

    name: str
    of: tuple[str, str, str]
    to: tuple[str, str, str]
    meaning: str
    at_least: float | None = None
    at_most: float | None = None

    def value(self, figures: Figures) -> float | None:
        """The ratio of the medians, or None if one of them was not measured."""
        above, below = figures.median(*self.of), figures.median(*self.to)
        return None if above is None or not below else above / below


Case = Callable[..., Awaitable[None]]
