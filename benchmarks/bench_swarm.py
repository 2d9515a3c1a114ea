"""Measure the swarm beside stock py-libp2p and bare sockets: ``nox -s bench_swarm``.

``--quick`` does little of everything, ``--case NAME`` (repeatable) only some, ``--profile NAME`` looks where the time
of a case goes, ``--parts`` where that of bulk and of new streams goes and writes that to the documentation, as a whole
run does. A whole run replaces ``benchmarks/out/bench_swarm.json`` and its part of ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from datetime import UTC, datetime
from typing import Any

import anyio
from rich.console import Console

from benchmarks import machine, report, swarm_parts
from benchmarks.harness import ROOT, BenchmarkError, Figures
from benchmarks.swarm_cases import CASES, LIMITS, QUICK, RATIOS, Run, Scale, profile

_OUT = ROOT / "benchmarks" / "out"
_DOCS = ROOT / "docs" / "benchmarks.md"
_STACKS = ("sdnet", "sdnet_quic", "stock", "stock_quic", "stock_tuned", "raw", "raw_aead")
_PROFILE_S = 8.0
_PARTS_S = 20.0
_SHOWN = 30
_QUIET_CORES = 0.2


async def _measure(console: Console, names: list[str], scale: Scale) -> dict[str, Any]:
    about = machine.describe("libp2p", "trio", "anyio", "cryptography", "multiaddr")
    load = machine.OtherLoad()
    began = time.monotonic()
    figures = Figures()
    failed: dict[str, str] = {}
    for name in names:
        console.print(f"[bold]{name}[/bold]: {CASES[name].__doc__}", highlight=False)
        case_began = time.monotonic()
        try:
            await CASES[name](Run(figures, scale, lambda text: console.print(f"  {text}", highlight=False)))
        except BenchmarkError as exc:
            # The other cases still tell something.
            failed[name] = str(exc)
            console.print(str(exc), style="red", highlight=False, markup=False)
        console.print(f"  {time.monotonic() - case_began:.0f} s", highlight=False)
    about["other_load_cores"] = load.cores()
    limits = {
        limit.figure: (value, figures.units[limit.figure], limit.at_least, limit.at_most)
        for limit in LIMITS
        if (value := figures.median(limit.case, "sdnet", limit.figure)) is not None
    }
    return report.result(
        figures,
        RATIOS,
        limits,
        benchmark="bench_swarm",
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
        seconds=round(time.monotonic() - began),
        machine=about,
        scale=dataclasses.asdict(scale),
        failed=sorted(failed),
    )


def _docs(found: dict[str, Any]) -> list[str]:
    about = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [
        "## Swarm",
        "",
        "`nox -s bench_swarm` runs, for each stack, two processes on loopback: `sdnet` is this project's swarm,",
        "`stock` is py-libp2p as its `new_host` makes it with Noise and Yamux, in processes that never import",
        "`sdnet_core`; `stock_tuned` is the fastest that was found without changing it (writes of 65,507 bytes, which",
        "fit one Noise message, where all others write 256 KiB, and its environment settings",
        "`PY_YAMUX_RELEASE_ON_READ=0` and `PY_YAMUX_ASSUME_RTT_MS=100`); `raw` is bare trio sockets, and `raw_aead`",
        "those with one pass of ChaCha20-Poly1305; `sdnet_quic` and `stock_quic` have",
        "QUIC as their only transport. The stacks take turns, and each value is the median of its rounds. A ratio is",
        "ours over the other's.",
        "",
        f"Measured {found['measured']} on {about['cores']} cores ({about['processor']}), {about['memory_gib']:g} GiB,"
        f" {about['kernel']}, {about['python']}; {versions}."
        f" Other programs kept {about['other_load_cores']} cores busy meanwhile.",
        "",
        *report.tables_as_markdown(found, RATIOS),
        "",
        "What the figures are: `throughput` is application data from the opening of the stream to the receiver's word",
        "that it has all; `cpu_*` is the CPU time of the processes per GiB; `connect` is the public call",
        "(`Swarm.dial`, `host.connect`), for `stock_dial_addr` the library's inner call without the 250 ms that",
        "`host.connect` waits; `first_reply` adds a stream and a request; pings use libp2p's ping protocol on an open",
        "stream, from the side that also sends the bulk; `memory_per_connection` is what one node's resident memory",
        "grew by while that many nodes with keys of their own connected to it and identified; `setup_wire` is what",
        "the set-up of one connection moves in both directions, IPv4 and TCP headers included.",
    ]


async def _parts(console: Console) -> None:
    """Profile bulk and new streams, and write down where the CPU time goes."""
    about = machine.describe("libp2p", "trio")
    found: dict[str, Any] = {}
    for case, what in swarm_parts.WORK.items():
        console.print(f"[bold]profile[/bold]: {what}", highlight=False)
        listener, dialler = await profile(case, "sdnet", _PARTS_S)
        found[case] = {"listener": listener, "dialler": dialler}
    table = swarm_parts.as_markdown(found)
    console.print("\n".join(table), highlight=False, markup=False)
    lines = [
        "### Where the swarm's time goes",
        "",
        "Both processes of `sdnet` were looked at every millisecond of CPU time (`nox -s bench_swarm -- --parts`).",
        "What a line calls in C counts for the line: encryption for Noise, `send` and `recv` for the sockets.",
        "`--profile CASE` has the same by function and by line.",
        "",
        *table,
        "",
        f"Measured {datetime.now(UTC).strftime('%Y-%m-%d')} on {about['cores']} cores ({about['processor']}),"
        f" {about['python']}.",
    ]
    report.write_docs(_DOCS, "bench_swarm_parts", lines)


def _profile(console: Console, case: str, stack: str) -> None:
    listener, dialler = anyio.run(profile, case, stack, _PROFILE_S, backend="trio")
    lines: list[str] = []
    for side, found in (("dialling and sending side", dialler), ("listening and receiving side", listener)):
        lines.append(f"{case} on {stack}: {side}, {found['samples']} samples of CPU time")
        for title, key in (("own time", "own"), ("with callees", "with_callees"), ("by line", "lines")):
            lines += ["", f"  {title}"]
            lines += [f"  {100 * share:5.1f} %  {name}" for name, share in found[key][:_SHOWN]]
        lines.append("")
    path = _OUT / f"profile_{case}_{stack}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    console.print("\n".join(lines), highlight=False, markup=False)
    console.print(f"Written to {path.relative_to(ROOT)}", highlight=False)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="nox -s bench_swarm --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of everything, in about a minute")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; repeatable")
    parser.add_argument("--profile", metavar="CASE", help="profile both sides of a case instead")
    parser.add_argument("--stack", choices=_STACKS, default="sdnet", help="the stack to profile")
    parser.add_argument("--parts", action="store_true", help="only profile bulk and new streams, for the documentation")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    try:
        if options.profile:
            _profile(console, options.profile, options.stack)
            return 0
        if options.parts:
            anyio.run(_parts, console, backend="trio")
            return 0
        found = anyio.run(
            _measure, console, options.case or list(CASES), QUICK if options.quick else Scale(), backend="trio"
        )
    except BenchmarkError as exc:
        console.print(str(exc), style="red", highlight=False, markup=False)
        return 1
    report.show(console, found, RATIOS)
    if (busy := found["machine"]["other_load_cores"]) and busy > _QUIET_CORES:
        console.print(f"Other programs kept {busy:g} cores busy meanwhile: repeat on a quiet machine.", style="yellow")
    whole = not options.case and not options.quick and not found["failed"]
    path = _OUT / ("bench_swarm.json" if whole else "bench_swarm.partial.json")
    report.write_json(path, found)
    if whole:
        report.write_docs(_DOCS, "bench_swarm", _docs(found))
        anyio.run(_parts, console, backend="trio")
    console.print(f"Written to {path.relative_to(ROOT)} after {found['seconds']} s", highlight=False)
    if found["failed"]:
        console.print(f"Failed: {', '.join(found['failed'])}.", style="red")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
