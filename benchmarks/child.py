"""The side of a benchmark's child process: takes commands from the parent, one at a time, and answers.

Commands come as JSON lines on standard input and answers go as JSON lines to what was standard output. The end of
standard input ends the process, so no child outlives its parent.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import FrameType
from typing import Any

import trio

__all__ = ["Command", "raise_file_limit", "serve_commands"]

Command = Callable[..., Awaitable[Any]]

_SAMPLE_S = 0.001
_MAX_FRAMES = 60


def raise_file_limit() -> int:
    """Raise the limit of open files as far as allowed.

    :returns: the limit now in force.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def resident_bytes() -> int:
    """The memory of this process that is resident, in bytes."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        import resource

        # Elsewhere only the peak is known without further packages; macOS gives it in bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def _usage(*, collect: bool = False) -> dict[str, Any]:
    """CPU time used so far, resident memory, and whether this project's code is loaded.

    :param collect: collect garbage first, so that memory is that of what lives; it costs CPU time.
    """
    if collect:
        gc.collect()
    return {
        "cpu_s": time.process_time(),
        "resident_bytes": resident_bytes(),
        "has_sdnet": any(name.partition(".")[0] == "sdnet_core" for name in sys.modules),
    }


def _name(code: Any) -> str:
    """A function's place without this machine's directories."""
    file = code.co_filename
    for mark in ("/site-packages/", "/src/", "/lib/"):
        if mark in file:
            file = file.rpartition(mark)[2]
            break
    else:
        file = os.path.relpath(file)
    return f"{file}:{code.co_qualname}"


class _Sampler:
    """Looks at the stack every millisecond of CPU time, or as often as the kernel's clock ticks (often every 4 ms).

    Time inside a C function counts for the line that called it. Being interrupted costs every function the same, so
    unlike a tracing profiler it does not make small functions look dear.
    """

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._with_callees: Counter[str] = Counter()
        self._count = 0

    def start(self) -> None:
        """Begin."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, _SAMPLE_S, _SAMPLE_S)

    def stop(self) -> dict[str, Any]:
        """End, and give shares of CPU time by function, by line and by file."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        total = max(1, self._count)

        def shares(counter: Counter[str]) -> list[tuple[str, float]]:
            return [(name, count / total) for name, count in counter.most_common(_MAX_FRAMES)]

        files: Counter[str] = Counter()
        for name, count in self._own.items():
            files[name.partition(":")[0]] += count
        return {
            "samples": self._count,
            "own": shares(self._own),
            "lines": shares(self._lines),
            "with_callees": shares(self._with_callees),
            "files": {name: count / total for name, count in files.items()},
        }

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self._count += 1
        name = _name(frame.f_code)
        self._own[name] += 1
        self._lines[f"{name}:{frame.f_lineno}"] += 1
        seen = set()
        walk: FrameType | None = frame
        while walk is not None:
            seen.add(walk.f_code)
            walk = walk.f_back
        self._with_callees.update({_name(code) for code in seen})


def _with_common(commands: Mapping[str, Command]) -> dict[str, Command]:
    sampler = _Sampler()

    async def profile_start() -> None:
        sampler.start()

    async def profile_stop() -> dict[str, Any]:
        return sampler.stop()

    return {"usage": _usage, "profile_start": profile_start, "profile_stop": profile_stop, **commands}


async def serve_commands(commands: Mapping[str, Command], *, answers_fd: int) -> None:
    """Serve the parent until it closes our standard input, also in the middle of a command.

    :param commands: what each command does with its arguments; the value it returns must fit JSON.
    :param answers_fd: where answers are written.
    """
    known = _with_common(commands)
    send, receive = trio.open_memory_channel[dict[str, Any]](16)

    async def work() -> None:
        async for message in receive:
            try:
                answer = {"answer": await known[message.pop("do")](**message)}
            except Exception:
                answer = {"error": traceback.format_exc()}
            os.write(answers_fd, json.dumps(answer).encode() + b"\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        async with trio.lowlevel.FdStream(os.dup(0)) as commands_in:
            pending = b""
            async for data in commands_in:
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    await send.send(json.loads(line))
        nursery.cancel_scope.cancel()


def take_standard_output() -> int:
    """Keep what is printed out of the answers.

    :returns: the file descriptor to write answers to.
    """
    answers_fd = os.dup(1)
    os.dup2(2, 1)
    return answers_fd
