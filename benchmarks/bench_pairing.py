"""Measure how long pairing takes: ``nox -s bench_pairing``; ``-- --quick`` for one round.

Two nodes, each a process, find each other by real multicast DNS on loopback and pair by words only, or by a link. With
root on Linux two daemons do it in network namespaces, too: on one LAN, and through a public node.
Nobody is asked, so what is measured is everything but the person: from the moment at which the words are there to that
at which the device is stored, and to that at which the first session is proven.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.to_thread
from rich.console import Console

from benchmarks import machine, pairing_networks, report
from benchmarks.harness import ROOT, BenchmarkError, Figures, Pair, pairs

_OUT = ROOT / "benchmarks" / "out"
_DOCS = ROOT / "docs" / "benchmarks.md"
_MODULE = "benchmarks.pairing_peer"
_UNITS = dict.fromkeys(("paired", "connected", "upgrade"), "s")
_QUIET_CORES = 0.2
_ROUNDS, _NETWORK_ROUNDS = 10, 5
_LIMITS = (
    *((f"{case}_paired", (case, "sdnet", "paired"), 3.0) for case in ("new_nodes", "words", "link", "one_lan")),
    *((f"{case}_paired", (case, "sdnet", "paired"), 10.0) for case in ("routed_lans", "two_homes")),
    ("dcutr", ("two_homes", "sdnet", "upgrade"), 5.0),
)


async def _pair(pair: Pair, how: str) -> dict[str, float]:
    shown = await pair.listener.call("show")
    found: dict[str, float] = await pair.dialler.call("join", code=shown[how])
    await pair.listener.call("shown")
    await pair.both("forget")
    return found


async def _measure(console: Console, rounds: int, network_rounds: int) -> dict[str, Any]:
    about = machine.describe("libp2p", "trio", "anyio", "cryptography", "zeroconf")
    load = machine.OtherLoad()
    began = time.monotonic()
    figures = Figures()
    for number in range(rounds):
        async with pairs(_MODULE, ["sdnet"]) as stacks:
            pair = stacks["sdnet"]
            # The two have just started and know nothing of each other, nor has either paired before.
            figures.add("new_nodes", "sdnet", _UNITS, **await _pair(pair, "words"))
            figures.add("words", "sdnet", _UNITS, **await _pair(pair, "words"))
            figures.add("link", "sdnet", _UNITS, **await _pair(pair, "link"))
        console.print(f"round {number + 1} of {rounds}", highlight=False)
    # Daemons are nobody's children, and would count as others.
    about["other_load_cores"] = load.cores()
    if missing := pairing_networks.why_not():
        console.print(f"Nothing is measured between networks: {missing}", style="yellow", highlight=False)
        network_rounds = 0
    for number in range(network_rounds):
        for case in pairing_networks.NETWORKS:
            got = await anyio.to_thread.run_sync(pairing_networks.measure, case)
            figures.add(case, "sdnet", _UNITS, **got)
        console.print(f"round {number + 1} of {network_rounds} between networks", highlight=False)
    limits = {
        name: (value, "s", None, at_most) for name, of, at_most in _LIMITS if (value := figures.median(*of)) is not None
    }
    return report.result(
        figures,
        (),
        limits,
        benchmark="bench_pairing",
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
        seconds=round(time.monotonic() - began),
        machine=about,
        scale={"rounds": rounds, "network_rounds": network_rounds},
    )


def _docs(found: dict[str, Any]) -> list[str]:
    about = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [
        "## Pairing",
        "",
        "`nox -s bench_pairing` runs two nodes, each a process, that find each other by real multicast DNS on loopback",
        "and pair without asking a person. `paired` is from the moment at which the joiner has the code to the one at",
        "which it has stored the other device durably, `connected` to the first proven session. `new_nodes` pairs two",
        "that have just started, `words` the same two once more, `link` with the link that a QR code holds.",
        "With root on Linux, two daemons that have just started pair by words in network namespaces, too: on `one_lan`",
        "by multicast DNS; on `routed_lans`, which no multicast crosses, through the DHT of an `sdnet node`; as",
        "`two_homes`, each behind a router that translates addresses and lets nothing in, through DHT and relay of",
        "a node. `upgrade` is from the first session, through the relay, to the direct one that hole punching",
        "(DCUtR) gives.",
        "",
        f"Measured {found['measured']} on {about['cores']} cores ({about['processor']}), {about['memory_gib']:g} GiB,"
        f" {about['kernel']}, {about['python']}; {versions}."
        f" Other programs kept {about['other_load_cores']} cores busy during the part on loopback.",
        "",
        *report.tables_as_markdown(found, ()),
    ]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="nox -s bench_pairing --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    try:
        rounds = (1, 1) if options.quick else (_ROUNDS, _NETWORK_ROUNDS)
        found = anyio.run(_measure, console, *rounds, backend="trio")
    except BenchmarkError as exc:
        console.print(str(exc), style="red", highlight=False, markup=False)
        return 1
    report.show(console, found, ())
    if (busy := found["machine"]["other_load_cores"]) and busy > _QUIET_CORES:
        console.print(f"Other programs kept {busy:g} cores busy meanwhile: repeat on a quiet machine.", style="yellow")
    path = _OUT / ("bench_pairing.partial.json" if options.quick else "bench_pairing.json")
    report.write_json(path, found)
    if not options.quick:
        report.write_docs(_DOCS, "bench_pairing", _docs(found))
    console.print(f"Written to {path.relative_to(ROOT)} after {found['seconds']} s", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
