"""Devices on all kinds of networks pair by words alone, talk, and send files; directly where that is possible."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import MakeNode
from tests.e2e.net.stage import FILE_BYTES, Stage, relayed, talk
from tests.e2e.net.topologies import wait, why_not
from tests.e2e.test_two_devices import pair

REASON = why_not()
if os.environ.get("SDNET_NET") == "required" and REASON:
    raise RuntimeError(REASON)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture
def stage(make_node: MakeNode) -> Iterator[Stage]:
    made = Stage(make_node)
    yield made
    made.close()


def test_one_host(stage: Stage, tmp_path: Path) -> None:
    machine = stage.internet.machine()
    point = stage.point(machine)
    alice = stage.device("alice", machine, point, SDNET_DISCOVERY_MDNS="false")
    bob = stage.device("bob", machine, point, SDNET_DISCOVERY_MDNS="false")
    pair(alice, bob)
    talk(alice, bob, tmp_path)


def test_one_lan_without_a_public_node(stage: Stage, tmp_path: Path) -> None:
    alice = stage.device("alice", stage.internet.machine())
    bob = stage.device("bob", stage.internet.machine())
    pair(alice, bob)
    talk(alice, bob, tmp_path)


def test_routed_lans_without_multicast(stage: Stage, tmp_path: Path) -> None:
    machines = stage.routed_lans(3)
    point = stage.point(machines[2])
    alice = stage.device("alice", machines[0], point)
    bob = stage.device("bob", machines[1], point)
    pair(alice, bob)
    wait(lambda: not relayed(alice), "alice reaches bob directly", alice, bob)
    talk(alice, bob, tmp_path)


def test_two_homes_reach_each_other_directly(stage: Stage, tmp_path: Path) -> None:
    point = stage.point(stage.internet.machine())
    alice = stage.device("alice", stage.internet.site().machine(), point)
    bob = stage.device("bob", stage.internet.site().machine(), point)
    pair(alice, bob)
    wait(lambda: not relayed(alice) and not relayed(bob), "they are connected directly", alice, bob)
    talk(alice, bob, tmp_path)
    assert not relayed(alice)


def test_two_homes_whose_routers_do_not_let_through(stage: Stage, tmp_path: Path) -> None:
    point = stage.point(stage.internet.machine())
    alice = stage.device("alice", stage.internet.site(symmetric=True).machine(), point)
    bob = stage.device("bob", stage.internet.site(symmetric=True).machine(), point)
    pair(alice, bob)
    talk(alice, bob, tmp_path)
    assert relayed(alice)
    assert relayed(bob)
    assert point.status()["relay"]["counts"]["bytes"] > FILE_BYTES
