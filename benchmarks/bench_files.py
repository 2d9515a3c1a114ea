"""Measure copies of files beside other programs: ``nox -s bench_files``.

What is timed is the whole command, from its start until it says that it is done; then what arrived is compared with
the source. Everything runs on loopback, on one disk, and each value is the median of its rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rich.console import Console

from benchmarks import machine, report
from benchmarks.chart import bars
from benchmarks.file_fairness import measure_fairness
from benchmarks.file_processes import Watcher
from benchmarks.file_tools import DELETING, ENCRYPTED, TOOLS, MissingError, Tool
from benchmarks.harness import ROOT, BenchmarkError, Figures, Ratio, rotated

_OUT = ROOT / "benchmarks" / "out"
_DOCS = ROOT / "docs" / "benchmarks.md"
_MIB = 1 << 20
_UNITS = {"time": "s", "cpu": "CPU s", "peak": "MiB", "ping_p99": "ms", "ping_median": "ms", "shares": "part"}
_FASTEST = "fastest_encrypted"
_NEEDED = ("scp", "rsync_ssh", "wormhole", "syncthing")
"""Without one of these nobody knows which is the fastest."""
_TEXT = b"The quick brown fox jumps over the lazy dog, line %d of a text that repeats itself.\n"
_COMPARED = ("gib", "mib64", "small10k", "text")
_CASES = ("gib", "gib10", *_COMPARED[1:], "three", "sealing")
"""10 GiB right behind 1 GiB: between them nothing else makes the processes grow."""
"""The last three are measured for sdnet alone: 10 GiB, three transfers at once with pings, and what sealing costs."""
_TITLES = {
    "gib": "1 GiB of random bytes",
    "mib64": "64 MiB, command to done",
    "small10k": "10,000 files of 1 KiB",
    "text": "1 GiB of text",
}
_CHART = "bench_files.svg"
_QUIET_CORES = 0.2
_RECORD_BYTES = 1 << 20


def _ratio(name: str, case: str, to: str, meaning: str, at_most: float | None, figure: str = "time") -> Ratio:
    return Ratio(
        name=name,
        of=(case, "sdnet", figure),
        to=(case, to, figure),
        meaning=f"{meaning}, less is better",
        at_most=at_most,
    )


RATIOS = (
    _ratio("gib_time_vs_fastest_encrypted", "gib", _FASTEST, "time for 1 GiB", 0.6),
    _ratio("mib64_time_vs_fastest_encrypted", "mib64", _FASTEST, "time for 64 MiB", 1.0),
    _ratio("small10k_time_vs_tar_ssh", "small10k", "tar_ssh", "time for 10,000 files of 1 KiB", 1.0),
    _ratio("small10k_time_vs_fastest_encrypted", "small10k", _FASTEST, "time for 10,000 files of 1 KiB", None),
    _ratio("text_time_vs_fastest_encrypted", "text", _FASTEST, "time for 1 GiB of text", None),
    _ratio("gib_cpu_vs_scp", "gib", "scp", "CPU time of both sides for 1 GiB", None, "cpu"),
    _ratio("gib_time_vs_cp", "gib", "cp", "time for 1 GiB", None),
    _ratio("gib_time_vs_raw", "gib", "raw", "time for 1 GiB", None),
)


def _make_sources(folder: Path, cases: Sequence[str], quick: bool) -> dict[str, Path]:
    sources: dict[str, Path] = {}
    share = 16 if quick else 1
    for case in cases:
        path = sources[case] = folder / case
        if case == "small10k":
            path.mkdir()
            for number in range(10_000 // share):
                (path / f"file-{number:05d}").write_bytes(os.urandom(1024))
            continue
        size = {"mib64": 64, "gib10": 10_240}.get(case, 1024) * _MIB // share
        with path.open("wb") as file:
            line = 0
            while file.tell() < size:
                piece = b"".join(_TEXT % n for n in range(line, line + 10_000)) if case == "text" else os.urandom(_MIB)
                line += 10_000
                file.write(piece[: size - file.tell()])
    return sources


def _digest(path: Path) -> bytes:
    """One hash over the names and contents below a path; the path's own name does not count."""
    total = blake3()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            total.update(str(file.relative_to(path)).encode() + b"\0")
            with file.open("rb", buffering=0) as content:
                each = blake3()
                while piece := content.read(4 * _MIB):
                    each.update(piece)
            total.update(each.digest())
    return total.digest()


def _once(tool: Tool, source: Path, target: Path, expected: bytes) -> Watcher:
    target.mkdir()
    prepare = getattr(tool, "prepare", None)
    if prepare is not None:
        prepare(source)
    # What others have written must not wait in the queue of the disk.
    os.sync()
    with Watcher(tool.pids) as watcher:
        arrived = tool.copy(watcher, source, target)
    if _digest(arrived) != expected:
        raise BenchmarkError(f"{source.name} arrived changed.")
    if not arrived.is_relative_to(target) and prepare is None:
        arrived.rename(target / arrived.name)  # the next one gets the same name again
    if source.is_file():
        shutil.rmtree(target)
    return watcher


def _measure(console: Console, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    about = machine.describe("libp2p", "trio", "anyio", "cryptography", "blake3")
    load = machine.OtherLoad()
    began = time.monotonic()
    figures = Figures()
    missing: dict[str, str] = {}
    tools: dict[str, Tool] = {}
    wanted = [name for name in TOOLS if not options.tool or name in options.tool]
    with ExitStack() as stack:
        for name in wanted:
            home = work / name
            home.mkdir()
            try:
                tools[name] = stack.enter_context(TOOLS[name](home))
            except (MissingError, BenchmarkError) as exc:
                missing[name] = str(exc)
                console.print(f"{name}: {exc}", style="yellow", highlight=False, markup=False)
        for name in set(TOOLS) - set(wanted):
            missing[name] = "It was not asked for."
        cases = options.case or _CASES
        rounds = 1 if options.quick else options.rounds
        for case in cases:
            if case not in (*_COMPARED, "gib10") or (case == "gib10" and "sdnet" not in tools):
                continue
            [source] = _make_sources(work, [case], options.quick).values()
            expected = _digest(source)
            for number, name in _turns(case, list(tools), rounds, options.slow_rounds):
                if name not in tools:
                    continue
                try:
                    cost = _once(tools[name], source, work / f"{name}-{case}-{number}", expected).cost
                except BenchmarkError as exc:
                    missing[name] = f"It failed: {exc}"
                    del tools[name]
                    console.print(f"{name}: {exc}", style="red", highlight=False, markup=False)
                    continue
                figures.add(case, name, _UNITS, time=cost.time_s, cpu=cost.cpu_s, peak=cost.peak_mib)
                console.print(
                    f"{case} {number + 1}/{rounds} {name}: {cost.time_s:.2f} s, {cost.cpu_s:.2f} CPU s, "
                    f"{cost.peak_mib:.0f} MiB",
                    highlight=False,
                )
            for left in work.glob(f"*-{case}-*"):
                shutil.rmtree(left)
            shutil.rmtree(source) if source.is_dir() else source.unlink()
    if "sdnet" in wanted:
        _measure_ours(console, figures, cases, work, rounds=rounds, quick=options.quick)
    about["other_load_cores"] = load.cores()
    _add_fastest(figures, missing)
    limits = _limits(figures)
    found = report.result(
        figures,
        RATIOS,
        limits,
        benchmark="bench_files",
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
        seconds=round(time.monotonic() - began),
        machine=about,
        scale={"rounds": rounds, "slow_rounds": options.slow_rounds, "quick": options.quick},
    )
    return {**found, "missing": missing}


def _turns(case: str, names: Sequence[str], rounds: int, slow_rounds: int) -> list[tuple[int, str]]:
    """Who is measured when: by rounds, each beginning with another one, and those that delete behind all others.

    For minutes after thousands of files were deleted, ext4 takes up to ten times as long to make a new one, whoever
    makes it: it looks for an inode that was not in use just now.
    """
    if case == "gib10":
        return [(0, "sdnet")]
    keeping = [name for name in names if name not in DELETING]
    turns = [(number, name) for number in range(rounds) for name in rotated(keeping, number)]
    return turns + [(number, name) for name in DELETING if name in names for number in range(min(rounds, slow_rounds))]


def _measure_ours(
    console: Console, figures: Figures, cases: Sequence[str], work: Path, *, rounds: int, quick: bool
) -> None:
    """What stands beside no other program."""
    for number in range(rounds):
        if "three" in cases:
            found = measure_fairness(work / f"three-{number}", 32 if quick else 512)
            shutil.rmtree(work / f"three-{number}")
            figures.add("three", "sdnet", _UNITS, **found)
            console.print(
                f"three {number + 1}/{rounds} sdnet: ping p99 {found['ping_p99']:.1f} ms, median"
                f" {found['ping_median']:.1f} ms; the least is {found['shares']:.0%} behind the most",
                highlight=False,
            )
        if "sealing" in cases:
            figures.add("sealing", "sdnet", _UNITS, cpu=_sealing_cpu_s())
            console.print(f"sealing {number + 1}/{rounds} sdnet: {figures.median('sealing', 'sdnet', 'cpu'):.3f} CPU s")


def _sealing_cpu_s() -> float:
    """CPU time to seal 1 GiB and to open it again, in records as a transfer has them, besides what Noise does."""
    aead = AESGCM(os.urandom(32))
    plain, sealed, opened = os.urandom(_RECORD_BYTES), bytearray(_RECORD_BYTES + 16), bytearray(_RECORD_BYTES)
    began = time.process_time()
    for number in range((1 << 30) // _RECORD_BYTES):
        nonce = number.to_bytes(12, "big")
        aead.encrypt_into(nonce, plain, b"header", sealed)
        aead.decrypt_into(nonce, sealed, b"header", opened)
    return time.process_time() - began


def _limits(figures: Figures) -> dict[str, tuple[float, str, float | None, float | None]]:
    """Figures that are no ratios of times but have a target."""
    limits: dict[str, tuple[float, str, float | None, float | None]] = {}
    peaks = {case: peak for case in figures.rounds if (peak := figures.median(case, "sdnet", "peak")) is not None}
    if peaks:
        limits["peak_memory"] = (max(peaks.values()), "MiB", None, 160.0)
    if "gib" in peaks and "gib10" in peaks:
        limits["peak_memory_growth_1_to_10_gib"] = (peaks["gib10"] - peaks["gib"], "MiB", None, 16.0)
    for figure, unit, most in (("ping_p99", "ms", 50.0), ("shares", "part", 0.2)):
        value = figures.median("three", "sdnet", figure)
        if value is not None:
            limits[f"three_{figure}"] = (value, unit, None, most)
    sealing, whole = figures.median("sealing", "sdnet", "cpu"), figures.median("gib", "sdnet", "cpu")
    if sealing is not None and whole is not None:
        limits["sealing_share_of_cpu"] = (sealing / (whole - sealing), "part", None, 0.05)
    return limits


def _add_fastest(figures: Figures, missing: dict[str, str]) -> None:
    """Give the fastest encrypted one a name of its own, if all that could be it were measured."""
    if any(name in missing for name in _NEEDED):
        return
    for case, by_name in figures.rounds.items():
        if case not in _COMPARED:
            continue
        times = {name: figures.median(case, name, "time") for name in ENCRYPTED if name in by_name}
        fastest = min((time_s, name) for name, time_s in times.items() if time_s is not None)[1]
        figures.rounds[case][_FASTEST] = {"time": by_name[fastest]["time"]}


def _chart(found: dict[str, Any]) -> str:
    """Bars of the times of each case that was compared."""
    groups = {
        _TITLES[case]: {name: one["time"]["median"] for name, one in by_name.items() if name != _FASTEST}
        for case, by_name in found["raw"].items()
        if case in _COMPARED
    }
    return bars(groups, ours="sdnet", unit="s")


def _docs(found: dict[str, Any]) -> list[str]:
    about = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    absent = [f"- `{name}`: {reason}" for name, reason in found["missing"].items()]
    return [
        "## Files",
        "",
        "`nox -s bench_files` copies 1 GiB of random bytes, 64 MiB, 10,000 files of 1 KiB and 1 GiB of text from one",
        "folder to another over loopback, with each program in turn, and compares what arrived with the source. The",
        "time is that of the whole command, of programs that were used before (Python's are compiled then). `sdnet` is",
        "`sdnet send` between two daemons that are paired; when it ends, the files are on the disk, which only it",
        f"waits for. `fastest_encrypted` is the fastest of {', '.join(ENCRYPTED)}.",
        "`gib10` is 10 GiB right behind the 1 GiB, `three` three transfers of 512 MiB at once with pings beside them",
        "(`shares`: how far the least of the three was behind the most), `sealing` the CPU time to seal and open 1 GiB",
        "besides what Noise does.",
        "`cpu` is of all processes of both sides, `peak` the memory of the largest of them. `syncthing` is timed from",
        "telling one side to look until the other side is up to date;"
        f" it is measured {found['scale']['slow_rounds']} times,",
        "behind the others, for it deletes the files of the round before; the others"
        f" {found['scale']['rounds']} times.",
        "",
        f"Measured {found['measured']} on {about['cores']} cores ({about['processor']}), {about['memory_gib']:g} GiB,"
        f" {about['kernel']}, {about['python']}; {versions}."
        f" Other programs kept {about['other_load_cores']} cores busy meanwhile.",
        "",
        *(["Not measured:", "", *absent, ""] if absent else []),
        f"![Times of the programs, shorter bars are better]({_CHART})",
        "",
        *report.tables_as_markdown(found, RATIOS),
    ]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="nox -s bench_files --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, a sixteenth of the sizes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=3, help="rounds of what takes many times as long")
    parser.add_argument("--case", action="append", choices=_CASES)
    parser.add_argument("--tool", action="append", choices=list(TOOLS))
    parser.add_argument("--folder", type=Path, help="where the files are copied; 24 GiB are needed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started is ended on this way out too
    console = Console(width=None if sys.stdout.isatty() else 150)
    folder = options.folder or Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="sdnet-bench-", dir=folder) as work:
        try:
            found = _measure(console, options, Path(work))
        except BenchmarkError as exc:
            console.print(str(exc), style="red", highlight=False, markup=False)
            return 1
    report.show(console, found, RATIOS)
    if (busy := found["machine"]["other_load_cores"]) and busy > _QUIET_CORES:
        console.print(f"Other programs kept {busy:g} cores busy meanwhile: repeat on a quiet machine.", style="yellow")
    partial = options.quick or bool(options.case) or bool(options.tool)
    path = _OUT / ("bench_files.partial.json" if partial else "bench_files.json")
    named = {ratio.name: found["ratios"].get(ratio.name) for ratio in RATIOS}
    report.write_json(path, {**found, "ratios": named})
    if not partial:
        report.write_docs(_DOCS, "bench_files", _docs(found))
        _DOCS.with_name(_CHART).write_text(_chart(found), encoding="utf-8")
    console.print(f"Written to {path.relative_to(ROOT)} after {found['seconds']} s", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
