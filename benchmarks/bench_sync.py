"""Measure the sync plugin between two processes on loopback: ``nox -s bench_sync``.

Libraries of a million entries, and mirrors: 10,000 small files beside Syncthing, if that is installed; a byte that
changes in a file of 1 GiB; small changes one by one. Memory is the highest resident size of a process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console

from benchmarks import machine, report
from benchmarks.file_processes import Watcher
from benchmarks.file_tools import TOOLS, MissingError
from benchmarks.harness import ROOT, BenchmarkError, Figures, Pair, Ratio, pairs

_OUT = ROOT / "benchmarks" / "out"
_DOCS = ROOT / "docs" / "benchmarks.md"
_TIMEOUT_S = 1200.0
_MIB = 1 << 20
_CASES = ("library", "small10k", "gib", "changes")
_UNITS = {"time": "s"}
_QUIET_CORES = 0.2

RATIOS = (
    Ratio(
        name="mirror_small10k_time_vs_syncthing",
        of=("small10k", "sdnet", "time"),
        to=("small10k", "syncthing", "time"),
        meaning="time until 10,000 files of 1 KiB are at the other side, less is better",
        at_most=0.3,
    ),
)

Limits = dict[str, tuple[float, str, float | None, float | None]]
"""Name to value, unit, least, most."""


async def _pair(pair: Pair) -> None:
    owner, other = pair.listener, pair.dialler
    pairing: dict[str, Any] = {"pairing_id": str(uuid.uuid4()), "root": os.urandom(32).hex()}
    hello = await other.call("hello")
    await owner.call("pair", device=hello, pending=True, **pairing)
    await other.call("pair", device=pair.hello, pending=False, **pairing)
    await pair.both("connect")
    await owner.call("create")


async def _library(pair: Pair, entries: int, limits: Limits) -> None:
    """A million entries: written, given to a new member, changed, compared."""
    owner, other = pair.listener, pair.dialler
    seconds = await owner.call("fill", count=entries, timeout_s=_TIMEOUT_S)
    limits["written_in_bulk"] = entries / seconds, "entries/s", 10_000, None
    await owner.call("invite")
    joined = await other.call("join", entries=entries, timeout_s=_TIMEOUT_S)
    limits["initial_sync"] = joined["seconds"], f"s for {entries:,} entries", None, 60 * entries / 1_000_000
    limits["initial_sync_memory"] = joined["peak_mib"], "MiB, receiver", None, 200
    limits["initial_sync_memory_sender"] = (await owner.call("usage"))["rss_mib"], "MiB", None, 200

    # So many that the last portion, which is applied when all are written, counts for little.
    more = entries // 4
    began = time.time()
    await owner.call("fill", count=more, first=entries, timeout_s=_TIMEOUT_S)
    done = await other.call("wait", entries=entries + more, timeout_s=_TIMEOUT_S)
    limits["written_there_applied_here"] = more / (done - began), "entries/s", 10_000, None

    singles = 100
    async with anyio.create_task_group() as group:
        group.start_soon(partial(owner.call, "echo", count=singles))
        await anyio.sleep(0.2)
        single = await other.call("single", count=singles)
    limits["single_put_median"] = single["median"], "ms", None, 50
    limits["single_put_p99"] = single["p99"], "ms", None, None

    await anyio.sleep(1)
    equal = await other.call("verify")
    if not equal["equal"]:
        raise BenchmarkError("the replicas differ after the sync")
    limits["verify_equal"] = equal["seconds"], "s", None, 2
    limits["verify_equal_exchanged"] = equal["bytes"] / 1024, "KiB", None, 64
    await owner.call("differ", count=10)
    differ = await other.call("verify")
    if differ["differing"] != 10:
        raise BenchmarkError(f"{differ['differing']} differing entries found instead of 10")
    limits["find_10_differing"] = differ["seconds"], "s", None, 3


async def _small(pair: Pair, files: int, folder: Path, figures: Figures, limits: Limits) -> None:
    """Many small files: from the first look at them until the other side is up to date."""
    owner, other = pair.listener, pair.dialler
    source, target = folder / "a", folder / "b"
    for path in (source, target):
        path.mkdir()
    for number in range(files):
        (source / f"file-{number:05d}").write_bytes(os.urandom(1024))
    os.sync()
    began = time.monotonic()
    peaks: list[float] = []

    async def mirror(peer: Any, path: Path) -> None:
        peaks.append((await peer.call("mirror", path=str(path), files=files, timeout_s=_TIMEOUT_S))["peak_mib"])

    async with anyio.create_task_group() as group:
        group.start_soon(mirror, owner, source)
        group.start_soon(mirror, other, target)
    figures.add("small10k", "sdnet", _UNITS, time=time.monotonic() - began)
    limits["mirror_memory"] = max(peaks), "MiB, larger side", None, None
    for file in source.iterdir():
        if file.is_file() and (target / file.name).read_bytes() != file.read_bytes():
            raise BenchmarkError(f"{file.name} arrived changed.")


def _syncthing(files: int, folder: Path, figures: Figures) -> None:
    source = folder / "source"
    source.mkdir(parents=True)
    (folder / "home").mkdir()
    for number in range(files):
        (source / f"file-{number:05d}").write_bytes(os.urandom(1024))
    with TOOLS["syncthing"](folder / "home") as tool:
        tool.prepare(source)
        os.sync()
        with Watcher(tool.pids) as watcher:
            tool.copy(watcher, source, folder / "unused")
    figures.add("small10k", "syncthing", _UNITS, time=watcher.cost.time_s)


async def _large(pair: Pair, size: int, folder: Path, limits: Limits) -> None:
    """One byte changes in the middle of a large file that both sides have."""
    file, copy = folder / "a" / "large.bin", folder / "b" / "large.bin"
    with file.open("wb") as out:
        for _ in range(size // _MIB):
            out.write(os.urandom(_MIB))
    await _until_there(pair, file, copy)
    with file.open("r+b") as out:
        out.seek(size // 2)
        byte = out.read(1)
        out.seek(size // 2)
        out.write(bytes([byte[0] ^ 1]))
    began = time.time()
    there = await _until_there(pair, file, copy)
    limits["one_byte_in_a_gib_moved"] = there["bytes"] / _MIB, "MiB", None, 2
    limits["one_byte_in_a_gib_visible"] = there["at"] - began, "s", None, None


async def _until_there(pair: Pair, file: Path, copy: Path) -> dict[str, float]:
    status = await anyio.to_thread.run_sync(file.stat)
    arguments = {"path": str(copy), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    found: dict[str, float] = await pair.dialler.call("wait_for_file", timeout_s=_TIMEOUT_S, **arguments)
    return found


async def _changes(pair: Pair, folder: Path, limits: Limits) -> None:
    """Small files change one by one."""
    times = []
    for number in range(20):
        file = folder / "a" / f"change-{number % 5}.txt"
        await anyio.to_thread.run_sync(file.write_text, f"version {number}")
        began = time.time()
        there = await _until_there(pair, file, folder / "b" / file.name)
        times.append(there["at"] - began)
        await anyio.sleep(0.2)
    times.sort()
    limits["change_to_visible_median"] = times[len(times) // 2], "s", None, 1
    limits["change_to_visible_max"] = times[-1], "s", None, None


async def _run(options: argparse.Namespace, console: Console, work: Path) -> dict[str, Any]:
    about = machine.describe("libp2p", "trio", "anyio", "cryptography", "blake3", "pycrdt", "watchfiles")
    load = machine.OtherLoad()
    began = time.monotonic()
    figures, limits = Figures(), Limits()
    missing: dict[str, str] = {}
    cases = options.case or _CASES
    share = 10 if options.quick else 1
    if "library" in cases:
        async with pairs("benchmarks.sync_peer", ["sdnet"]) as contenders:
            await _pair(contenders["sdnet"])
            await _library(contenders["sdnet"], options.entries or 1_000_000 // share, limits)
    files = 10_000 // share
    for number in range(1 if options.quick else options.rounds) if set(cases) & {"small10k", "gib", "changes"} else ():
        folder = work / f"mirror-{number}"
        folder.mkdir()
        async with pairs("benchmarks.sync_peer", ["sdnet"]) as contenders:
            pair = contenders["sdnet"]
            await _pair(pair)
            await pair.listener.call("fill", count=1)
            await pair.listener.call("invite")
            await pair.dialler.call("join", entries=1)
            await _small(pair, files, folder, figures, limits)
            if "gib" in cases and not number:
                await _large(pair, 1024 * _MIB // share, folder, limits)
            if "changes" in cases and not number:
                await _changes(pair, folder, limits)
        if "small10k" in cases:
            try:
                await anyio.to_thread.run_sync(_syncthing, files, folder / "syncthing", figures)
            except (MissingError, BenchmarkError) as exc:
                missing["syncthing"] = str(exc)
        shutil.rmtree(folder)
    about["other_load_cores"] = load.cores()
    found = report.result(
        figures,
        RATIOS,
        limits,
        benchmark="bench_sync",
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
        seconds=round(time.monotonic() - began),
        machine=about,
        scale={"quick": options.quick, "rounds": options.rounds},
    )
    return {**found, "missing": missing}


def _docs(found: dict[str, Any]) -> list[str]:
    about = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    absent = [f"- `{name}`: {reason}" for name, reason in found["missing"].items()]
    return [
        "## Sync",
        "",
        "`nox -s bench_sync` runs two nodes as processes on loopback. A library of a million entries of three fields",
        "is written, given to a new member, changed and compared; a folder with 10,000 files of 1 KiB is mirrored,",
        "from the command until the other side has nothing left to do, files on its disk; `syncthing` is timed from",
        "telling one side to look until the other is up to date. `one_byte_in_a_gib` changes one byte in the middle of",
        "a file of 1 GiB, `change_to_visible` small files one by one.",
        "",
        f"Measured {found['measured']} on {about['cores']} cores ({about['processor']}), {about['memory_gib']:g} GiB,"
        f" {about['kernel']}, {about['python']}; {versions}."
        f" Other programs kept {about['other_load_cores']} cores busy meanwhile.",
        "",
        *(["Not measured:", "", *absent, ""] if absent else []),
        *report.tables_as_markdown(found, RATIOS),
    ]


def main() -> int:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(prog="nox -s bench_sync --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, a tenth of the sizes")
    parser.add_argument("--entries", type=int, help="in the library")
    parser.add_argument("--rounds", type=int, default=3, help="of the mirror of small files")
    parser.add_argument("--case", action="append", choices=_CASES)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    with tempfile.TemporaryDirectory(prefix="sdnet-bench-") as work:
        try:
            found = anyio.run(_run, options, console, Path(work))
        except BenchmarkError as exc:
            console.print(str(exc), style="red", highlight=False, markup=False)
            return 1
    report.show(console, found, RATIOS)
    if (busy := found["machine"]["other_load_cores"]) and busy > _QUIET_CORES:
        console.print(f"Other programs kept {busy:g} cores busy meanwhile: repeat on a quiet machine.", style="yellow")
    partial_run = options.quick or bool(options.case) or bool(options.entries)
    path = _OUT / ("bench_sync.partial.json" if partial_run else "bench_sync.json")
    named = {ratio.name: found["ratios"].get(ratio.name) for ratio in RATIOS}
    report.write_json(path, {**found, "ratios": named})
    if not partial_run:
        report.write_docs(_DOCS, "bench_sync", _docs(found))
    console.print(f"Written to {path.relative_to(ROOT)} after {found['seconds']} s", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
