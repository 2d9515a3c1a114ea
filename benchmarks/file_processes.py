"""Processes of a file benchmark: started, timed, what they cost, ended by their ids. Needs /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.harness import BenchmarkError

__all__ = ["Background", "Cost", "Watcher", "run"]

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 0.1


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found


def _tree(pid: int) -> list[int]:
    tree = [pid]
    for one in tree:
        tree += _children(one)
    return tree


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of those of its children that have ended, seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS


def _peak_mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one copy cost.

    :param cpu_s: of both sides.
    :param peak_mib: of the largest single process.
    """

    time_s: float
    cpu_s: float
    peak_mib: float


class Watcher:
    """Measures the time of a block, and the CPU time and memory of processes meanwhile.

    :param pids: those that were there before, with all their descendants; and `watch` adds others.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._before = list(pids)
        self._pids = list(pids)
        self._cpu_s = 0.0
        self._began = 0.0
        self._peak_mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.cost = Cost(0.0, 0.0, 0.0)

    def __enter__(self) -> Self:
        for pid in self._before:
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        self._cpu_s = -self._tree_cpu_s()
        self._thread.start()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        time_s = time.monotonic() - self._began
        self._stop.set()
        self._thread.join()
        self.cost = Cost(time_s, self._cpu_s + self._tree_cpu_s(), self._peak_mib)

    def _tree_cpu_s(self) -> float:
        return sum(_cpu_s(pid) for root in self._before for pid in _tree(root))

    def ended(self, usage_s: float) -> None:
        """Add the CPU time of a process that has ended."""
        self._cpu_s += usage_s

    def watch(self, pid: int) -> None:
        """Watch the memory of one more process."""
        self._pids.append(pid)

    def _sample(self) -> None:
        while True:
            last = self._stop.wait(_SAMPLE_S)
            for root in list(self._pids):
                self._peak_mib = max(self._peak_mib, *(_peak_mib(pid) for pid in _tree(root)))
            if last:
                return


def run(watcher: Watcher, *commands: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    """Run commands at the same time, and wait until all have ended.

    :raises BenchmarkError: one failed.
    """
    started = [
        subprocess.Popen(
            [str(word) for word in command],
            env=dict(environment) if environment is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]
    for process in started:
        watcher.watch(process.pid)
    for process, command in zip(started, commands, strict=True):
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        watcher.ended(usage.ru_utime + usage.ru_stime)
        if process.returncode:
            name = Path(command[0]).name
            raise BenchmarkError(f"{name} ended with {process.returncode}: {said.decode(errors='replace')[-500:]}")


class Background:
    """A server of ours that runs beside the measurements and is ended by its id.

    :param log: where its output goes.
    """

    def __init__(self, *command: str | Path, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command = [str(word) for word in command]
        self._log = log
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its id, while it runs."""
        assert self._process is not None
        return self._process.pid

    def check(self) -> None:
        """:raises BenchmarkError: it has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise BenchmarkError(f"{Path(self._command[0]).name} ended: {self._log.read_text()[-500:]}")

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
