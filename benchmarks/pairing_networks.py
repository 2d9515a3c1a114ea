"""Pairing between daemons on networks of their own: one LAN, routed LANs, homes behind routers that translate.

The networks are those of the tests (`tests/e2e/net`), made of Linux network namespaces; that needs root.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness import BenchmarkError
from benchmarks.watched import Watched
from tests.e2e.conftest import Node
from tests.e2e.net.stage import Stage, temporary_nodes
from tests.e2e.net.topologies import why_not

__all__ = ["NETWORKS", "measure", "why_not"]

_ENDED = ("completed", "failed", "cancelled", "expired")

Devices = tuple[Node, Node]


def _one_lan(stage: Stage) -> Devices:
    return stage.device("alice", stage.internet.machine()), stage.device("bob", stage.internet.machine())


def _routed_lans(stage: Stage) -> Devices:
    machines = stage.routed_lans(3)
    point = stage.point(machines[2])
    return stage.device("alice", machines[0], point), stage.device("bob", machines[1], point)


def _two_homes(stage: Stage) -> Devices:
    point = stage.point(stage.internet.machine())
    homes = [stage.internet.site().machine() for _ in range(2)]
    return stage.device("alice", homes[0], point), stage.device("bob", homes[1], point)


NETWORKS: dict[str, Callable[[Stage], Devices]] = {
    "one_lan": _one_lan,
    "routed_lans": _routed_lans,
    "two_homes": _two_homes,
}
"""How two devices are connected, by the name of the case."""


def measure(case: str) -> dict[str, float]:
    """Let two daemons that have just started pair by words, without a person.

    :returns: seconds: ``paired`` from the joiner's having the words to its having stored the pairing; ``connected`` to
        its first session; where that goes through a relay, ``upgrade`` from the first session to the direct one.
    :raises BenchmarkError: they do not pair.
    """
    with temporary_nodes() as make_node:
        stage = Stage(make_node)
        try:
            alice, bob = (Watched(node.config) for node in NETWORKS[case](stage))
            return _pair(alice, bob, relayed=case == "two_homes")
        except TimeoutError as error:
            raise BenchmarkError(f"{case}: {error}") from error
        finally:
            stage.close()


def _pair(alice: Watched, bob: Watched, *, relayed: bool) -> dict[str, float]:
    shown = alice.client.post("/pairing/sessions", {"role": "initiator", "auto_accept": True})
    before = bob.latest()
    began, began_at = time.perf_counter(), time.time()
    session = bob.client.post("/pairing/sessions", {"role": "joiner", "code": shown["code"]})
    last: dict[str, Any] = session
    with bob.client.stream(f"/pairing/sessions/{session['id']}/watch") as changes:
        for last in changes:
            if last["state"] in _ENDED:
                break
    found = {"paired": time.perf_counter() - began}
    if last["state"] != "completed":
        raise BenchmarkError(f"The two did not pair: {last['detail']}")
    first_at = bob.wait_for("connection-established", before)
    found["connected"] = first_at - began_at
    if relayed:
        relayed_at = bob.wait_for("connection-established", before, which=_is_relayed)
        direct_at = bob.wait_for("connection-established", before, which=lambda event: not _is_relayed(event))
        found["upgrade"] = direct_at - relayed_at
    return found


def _is_relayed(event: dict[str, Any]) -> bool:
    return "/p2p-circuit" in (event["address"] or "")
