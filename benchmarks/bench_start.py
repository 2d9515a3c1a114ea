"""Measure the start of a node with 500 paired devices, and an idle one with 10 connected: ``nox -s bench_start``.

``-- --quick`` takes one round and a shorter look at the idle node. Processes are those of `benchmarks.start_peer`: the
daemon's own run of a node with all installed plugins and its local API, its data under a passphrase.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console

from benchmarks import machine
from benchmarks.harness import ROOT, BenchmarkError, Figures, Ratio
from benchmarks.report import result, show, tables_as_markdown, write_docs, write_json
from benchmarks.resident import kept_in_memory
from benchmarks.start_peer import PASSPHRASE, config_of
from sdnet_core import NetworkIdentity, NetworkingCore
from sdnet_core.clock import SystemRandomness
from sdnet_core.daemon.client import ApiClient
from sdnet_core.storage import Passphrase
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm

PAIRED, CONNECTED = 500, 10
UNITS = {
    "until_ready": "s",
    "imports": "s",
    "beyond_imports": "s",
    "memory": "MiB",
    "memory_per_device": "MiB",
    "kdf_calls": "calls",
    "idle_cpu": "% of a core",
    "idle_cpu_warm": "% of a core",
}
RATIOS = [
    Ratio(
        name="idle_memory_vs_libp2p_import",
        of=("idle", "10_connected", "memory"),
        to=("idle", "import_of_libp2p", "memory"),
        meaning="memory of an idle daemon with 10 connected devices to that of a process that only imports libp2p",
        at_most=1.25,
    ),
    Ratio(
        name="start_with_500_vs_none",
        of=("start", "500_paired", "until_ready"),
        to=("start", "none_paired", "until_ready"),
        meaning="time until it is ready, less is better",
    ),
]
_START_S = 180.0
_CONNECT_S = 180.0


@contextmanager
def peer(*arguments: str) -> Iterator[tuple[dict[str, Any], float]]:
    """Run one of the processes; gives what it told, and how long that took from the start, in seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.start_peer", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        taken_s = time.monotonic() - began
        if not line:
            raise BenchmarkError(f"{' '.join(arguments[:1])} ended with {process.wait()}")
        yield json.loads(line), taken_s
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def resident_mib(process_id: int) -> float:
    """A process's resident memory."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def cpu_s(process_id: int) -> float:
    """The processor time a process has used."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settings(port: int = 0) -> dict[str, str]:
    """Loopback only, and nothing announced."""
    return {"SDNET_NODE_LISTEN": f"/ip4/127.0.0.1/tcp/{port}", "SDNET_DISCOVERY_MDNS": "false"}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def prepare(home: Path, paired: int, partners: Sequence[tuple[Path, int]] = (), port: int = 0) -> None:
    """Make a home whose node is paired: with devices that are away, or with partners that get homes of their own.

    :param partners: home and port of each.
    :param port: of the node itself.
    """
    randomness, network = SystemRandomness(), MemoryNetwork()

    def node(place: Path, unlock: Any = None) -> NetworkingCore:
        return NetworkingCore(
            config_of(place, {"SDNET_NODE_LISTEN": "/memory/0"}),
            plugins=(),
            swarm=lambda identity: MemorySwarm(network, identity.peer_id),
            sources=lambda identity: (),
            unlock=unlock,
        )

    async with node(home, Passphrase(PASSPHRASE)) as core:
        for number in range(paired):
            info = NetworkIdentity.generate(randomness).device_info(uuid.uuid4(), f"device {number}", "0.1.0")
            address = f"/ip4/127.0.0.1/tcp/{free_port()}"
            await core.add_paired_device(
                info, pairing_id=uuid.uuid4(), pairing_root=randomness.bytes(32), addresses=[address]
            )
        for place, partner_port in partners:
            async with node(place) as partner:
                ids: dict[str, Any] = {"pairing_id": uuid.uuid4(), "pairing_root": randomness.bytes(32)}
                for here, there, at in ((core, partner, partner_port), (partner, core, port)):
                    address = f"/ip4/127.0.0.1/tcp/{at}"
                    await here.add_paired_device(there.device_info, addresses=[address], **ids)


def measure_start(figures: Figures, work: Path, rounds: int) -> None:
    """How long a start takes, and what a paired device costs in memory."""
    homes = {"none_paired": (work / "none", 0), "500_paired": (work / "many", PAIRED)}
    for home, paired in homes.values():
        anyio.run(prepare, home, paired)
    modules = work / "modules"
    for number in range(rounds + 1):
        memory: dict[str, float] = {}
        for name, (home, paired) in homes.items():
            with peer("node", str(home), json.dumps(settings())) as (told, ready_s):
                if told["paired"] != paired:
                    raise BenchmarkError(f"{told['paired']} devices are paired instead of {paired}")
                time.sleep(2)
                memory[name] = resident_mib(told["pid"])
            modules.write_text(" ".join(name for name in told["modules"] if name != "__main__"))
            with peer("imports", str(modules)) as (_, imports_s):
                pass
            if number:  # the first one warms the disk's cache
                figures.add(
                    "start",
                    name,
                    UNITS,
                    until_ready=ready_s,
                    imports=imports_s,
                    beyond_imports=ready_s - imports_s,
                    memory=memory[name],
                    kdf_calls=told["kdf_calls"],
                )
        if number:
            each = (memory["500_paired"] - memory["none_paired"]) / PAIRED
            figures.add("start", "500_paired", UNITS, memory_per_device=max(0.0, each))


def measure_idle(figures: Figures, work: Path, rounds: int, look_s: float) -> None:
    """What a node costs that is connected to some devices and has nothing to do."""
    port = free_port()
    partners = [(work / f"partner{number}", free_port()) for number in range(CONNECTED)]
    home = work / "idle"
    anyio.run(prepare, home, 0, partners, port)
    for partner, partner_port in partners:  # each listens where the node looks for it
        config_file = config_of(partner, {}).paths.config_file
        config_file.parent.mkdir(parents=True, exist_ok=True)
        config_file.write_text(f'[node]\nlisten = ["/ip4/127.0.0.1/tcp/{partner_port}"]\n')
    homes = json.dumps([str(partner) for partner, _ in partners])
    with (
        peer("node", str(home), json.dumps(settings(port))) as (told, _),
        peer("partners", homes, json.dumps({"SDNET_DISCOVERY_MDNS": "false"})),
    ):
        client = ApiClient(config_of(home, settings(port)))
        deadline = time.monotonic() + _CONNECT_S
        while client.get("/status")["devices"]["connected"] < CONNECTED:
            if time.monotonic() > deadline:
                raise BenchmarkError("the devices do not connect")
            time.sleep(0.2)
        time.sleep(min(10.0, look_s))
        pid = told["pid"]
        for _ in range(rounds):
            figures.add("idle", "10_connected", UNITS, idle_cpu=_share(pid, look_s), memory=resident_mib(pid))
        with kept_in_memory(pid):
            figures.add("idle", "10_connected", UNITS, idle_cpu_warm=_share(pid, look_s))
    for _ in range(rounds):
        with peer("libp2p") as (told, _):
            figures.add("idle", "import_of_libp2p", UNITS, memory=resident_mib(told["pid"]))


def _share(pid: int, look_s: float) -> float:
    """What a process uses of a core in that time, %."""
    before, began = cpu_s(pid), time.monotonic()
    time.sleep(look_s)
    return 100 * (cpu_s(pid) - before) / (time.monotonic() - began)


def main() -> int:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, and ten seconds of the idle node")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/benchmarks.md as it is")
    arguments = parser.parse_args()
    rounds, look_s = (1, 10.0) if arguments.quick else (3, 60.0)
    figures = Figures()
    # In memory where that is possible: making 500 pairings durable is not what is measured.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sdnet-", dir=place) as work:
        measure_start(figures, Path(work), rounds)
        measure_idle(figures, Path(work), rounds, look_s)

    def median(case: str, contender: str, name: str) -> float:
        return figures.median(case, contender, name) or 0.0

    limits: dict[str, tuple[float, str, float | None, float | None]] = {
        "start_beyond_imports": (median("start", "500_paired", "beyond_imports"), "s", None, 3.0),
        "memory_per_paired_device": (median("start", "500_paired", "memory_per_device"), "MiB", None, 1.0),
        "kdf_calls": (median("start", "500_paired", "kdf_calls"), "calls", 1, 1),
        "idle_cpu": (median("idle", "10_connected", "idle_cpu"), "% of a core", None, 1.0),
    }
    found = result(
        figures, RATIOS, limits, benchmark="bench_start", quick=arguments.quick, machine=machine.describe("libp2p")
    )
    show(Console(highlight=False), found, RATIOS)
    write_json(ROOT / "benchmarks" / "out" / "bench_start.json", found)
    if not arguments.quick and not arguments.no_docs:
        write_docs(ROOT / "docs" / "benchmarks.md", "bench_start", _docs(found))
    return 0


def _docs(found: dict[str, Any]) -> list[str]:
    about = found["machine"]
    return [
        "## Start and idle",
        "",
        f"`nox -s bench_start` on {about.get('processor', 'this machine')}: {PAIRED} paired devices that are away, and "
        f"{CONNECTED} that are connected to an idle node.",
        "",
        *tables_as_markdown(found, RATIOS),
        "",
        "What the figures are: `until_ready` is the time from the start of the process until the local API answers,",
        "`imports` that of a process that imports the same modules and ends, `beyond_imports` the difference;",
        "`memory` is resident memory, a few seconds after the start; `idle_cpu` is over a minute, keepalives included.",
        "On some machines the same work costs many times as much after a few seconds of rest, and that counts as",
        "the program's own time: `idle_cpu_warm` is of the same node while another process reads its memory twice",
        "a second.",
    ]


if __name__ == "__main__":
    sys.exit(main())
