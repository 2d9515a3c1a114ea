"""Counts how many connection attempts succeed, over networks of all kinds; says for each failure why.

``nox -s net_attempts`` makes 200 attempts (``-- --attempts N`` for another number). On each network two devices are
paired once; each attempt then restarts one of them, and succeeds if both are connected within the time given.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

from tests.e2e.conftest import Node
from tests.e2e.net.stage import Stage, other, relayed, temporary_nodes
from tests.e2e.net.topologies import Lan, Machine, PublicNodeProcess, start, why_not
from tests.e2e.test_two_devices import pair

LIMIT_S = 30.0
WANTED = 0.95

Pair = tuple[Machine, Machine, bool]
"""The machines of two devices, and whether they need the public node."""


def same_host(stage: Stage) -> Pair:
    machine = stage.internet.machine()
    return machine, machine, True


def same_lan(stage: Stage) -> Pair:
    site = stage.internet.site()
    return site.machine(), site.machine(), False


def same_lan_far(stage: Stage) -> Pair:
    """On one LAN, but without multicast."""
    site = stage.internet.site()
    return site.machine(), site.machine(), True


def two_homes(stage: Stage) -> Pair:
    return stage.internet.site().machine(), stage.internet.site().machine(), True


def home_and_public(stage: Stage) -> Pair:
    return stage.internet.site().machine(), stage.internet.machine(), True


def one_symmetric(stage: Stage) -> Pair:
    return stage.internet.site(symmetric=True).machine(), stage.internet.site().machine(), True


def both_symmetric(stage: Stage) -> Pair:
    return stage.internet.site(symmetric=True).machine(), stage.internet.site(symmetric=True).machine(), True


def routed(stage: Stage) -> Pair:
    """Two LANs behind a router that does not translate."""
    router, machines = stage.internet.machine(), [Machine(), Machine()]
    router.forward()
    for number, machine in enumerate(machines):
        stage.closing(machine)
        lan: Lan = stage.closing(Lan(f"10.{number + 1}.0"))
        lan.connect(router, f"lan{number}", "1")
        lan.connect(machine, "eth0", "2")
        machine.shell(f"ip route add default via {lan.prefix}.1")
    # Everybody else finds the way back.
    address = router.address
    for machine in stage.internet.machines:
        if machine is not router:
            machine.shell(f"ip route add 10.0.0.0/8 via {address} || true")
    return machines[0], machines[1], True


NETWORKS: dict[str, Callable[[Stage], Pair]] = {
    "same host": same_host,
    "same LAN": same_lan,
    "same LAN, no multicast": same_lan_far,
    "routed LANs": routed,
    "home and public host": home_and_public,
    "two homes": two_homes,
    "two homes, one symmetric": one_symmetric,
    "two homes, both symmetric": both_symmetric,
}


def restart(node: Node, machine: Machine) -> None:
    if node.pid is not None:
        node.kill9()
    start(node, machine)


def attempt(alice: Node, bob: Node, machine: Machine) -> tuple[float | None, str]:
    """Restart bob; how long it took until both were connected, seconds, or why they were not."""
    restart(bob, machine)
    began = time.monotonic()
    while time.monotonic() - began < LIMIT_S:
        if other(alice)["connected"] and other(bob)["connected"]:
            return time.monotonic() - began, "relayed" if relayed(bob) else "direct"
        time.sleep(0.1)
    found = [other(alice), other(bob)]
    return None, "; ".join(dict.fromkeys(str(one["last_error"] or one["reason"]) for one in found)) or "no reason given"


def run_network(name: str, stage: Stage, point: PublicNodeProcess, attempts: int) -> Iterator[tuple[float | None, str]]:
    one, two, far = NETWORKS[name](stage)
    settings = {"SDNET_DISCOVERY_MDNS": "false"} if far else {}
    points = [point] if far else []
    alice = stage.device("alice", one, *points, **settings)
    bob = stage.device("bob", two, *points, **settings)
    pair(alice, bob)
    try:
        for _ in range(attempts):
            yield attempt(alice, bob, two)
    finally:
        for node in (alice, bob):
            if node.pid is not None:
                node.kill9()


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=200)
    parser.add_argument("--network", action="append", choices=[*NETWORKS], help="only on this one")
    options = parser.parse_args(arguments)
    if reason := why_not():
        tell(f"net_attempts: not possible here: {reason}")
        return 2
    names = options.network or [*NETWORKS]
    shares = [options.attempts // len(names) + (n < options.attempts % len(names)) for n in range(len(names))]
    total = succeeded = 0
    with contextlib.ExitStack() as closing:
        make_node = closing.enter_context(temporary_nodes())
        for name, share in zip(names, shares, strict=True):
            stage = Stage(make_node)
            closing.callback(stage.close)
            point = stage.point(stage.internet.machine())
            results = list(run_network(name, stage, point, share))
            times = [took for took, _ in results if took is not None]
            failures = [why for took, why in results if took is None]
            paths = sorted({how for took, how in results if took is not None})
            total, succeeded = total + len(results), succeeded + len(times)
            median = f"median {statistics.median(times):.1f} s, " if times else ""
            tell(f"{name}: {len(times)} of {len(results)}, {median}{', '.join(paths)}")
            for why in failures:
                tell(f"  failed: {why}")
            stage.close()
    share_ok = succeeded / total if total else 0.0
    tell(json.dumps({"attempts": total, "succeeded": succeeded, "share": round(share_ok, 4), "wanted": WANTED}))
    return 0 if share_ok >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
