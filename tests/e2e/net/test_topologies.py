"""Devices on all kinds of networks pair by words alone, talk, and send files; directly where that is possible at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import MakeNode, Node
from tests.e2e.net.topologies import (
    NODE_PORT,
    SETTINGS,
    Internet,
    Lan,
    Machine,
    PublicNodeProcess,
    make_file,
    start,
    wait,
    why_not,
)
from tests.e2e.test_two_devices import pair

REASON = why_not()
if os.environ.get("SDNET_NET") == "required" and REASON:
    raise RuntimeError(REASON)
LONG = os.environ.get("SDNET_NET") == "required"
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
FILE_BYTES = (64 if LONG else 4) << 20


@pytest.fixture
def internet() -> Iterator[Internet]:
    made = Internet()
    yield made
    made.close()


def public_node(make_node: MakeNode, machine: Machine, **settings: str) -> PublicNodeProcess:
    process = PublicNodeProcess(make_node("node"), machine, f"/ip4/0.0.0.0/tcp/{NODE_PORT}", **settings)
    process.start()
    return process


def device(make_node: MakeNode, name: str, machine: Machine, *points: PublicNodeProcess, **settings: str) -> Node:
    node = make_node(name, **SETTINGS, SDNET_DISCOVERY_BOOTSTRAP=",".join(p.address for p in points), **settings)
    start(node, machine)
    return node


def other(node: Node) -> dict[str, Any]:
    (found,) = node.json("devices")
    return dict(found)


def talk(alice: Node, bob: Node, tmp_path: Path, size: int = FILE_BYTES) -> None:
    """A message and a file."""
    alice.run("msg", "send", "bob", "hello")
    assert "hello" in [message["text"] for message in bob.json("msg", "inbox")]
    file = make_file(tmp_path / "file.bin", size)
    alice.run("send", str(file), "--to", "bob", timeout_s=300)
    assert (bob.downloads / "file.bin").read_bytes() == file.read_bytes()


def stop(*nodes: Node | PublicNodeProcess) -> None:
    for node in nodes:
        node.stop()


def test_one_host(make_node: MakeNode, internet: Internet, tmp_path: Path) -> None:
    machine = internet.machine()
    point = public_node(make_node, machine)
    settings = {"SDNET_DISCOVERY_MDNS": "false"}
    alice = device(make_node, "alice", machine, point, **settings)
    bob = device(make_node, "bob", machine, point, **settings)
    pair(alice, bob)
    talk(alice, bob, tmp_path)
    stop(alice, bob, point)


def test_one_lan_without_a_public_node(make_node: MakeNode, internet: Internet, tmp_path: Path) -> None:
    alice = device(make_node, "alice", internet.machine())
    bob = device(make_node, "bob", internet.machine())
    pair(alice, bob)
    talk(alice, bob, tmp_path)
    stop(alice, bob)


def test_routed_lans_without_multicast(make_node: MakeNode, tmp_path: Path) -> None:
    router = Machine()
    lans = [Lan("10.1.0"), Lan("10.2.0"), Lan("10.3.0")]
    machines = [Machine() for _ in lans]
    try:
        router.forward()
        for number, (lan, machine) in enumerate(zip(lans, machines, strict=True)):
            lan.connect(router, f"lan{number}", "1")
            lan.connect(machine, "eth0", "2")
            machine.shell(f"ip route add default via {lan.prefix}.1")
        point = public_node(make_node, machines[2])
        alice = device(make_node, "alice", machines[0], point)
        bob = device(make_node, "bob", machines[1], point)
        pair(alice, bob)
        wait(lambda: "10.2.0.2" in str(other(alice)["address"]), "alice reaches bob directly", alice, bob)
        talk(alice, bob, tmp_path)
        stop(alice, bob, point)
    finally:
        for namespace in (*machines, router, *lans):
            namespace.close()


def relayed(node: Node) -> bool:
    return "p2p-circuit" in str(other(node)["address"])


def test_two_homes_reach_each_other_directly(make_node: MakeNode, internet: Internet, tmp_path: Path) -> None:
    point = public_node(make_node, internet.machine())
    alice = device(make_node, "alice", internet.site().machine(), point)
    bob = device(make_node, "bob", internet.site().machine(), point)
    pair(alice, bob)
    wait(lambda: not relayed(alice) and not relayed(bob), "they are connected directly", alice, bob)
    talk(alice, bob, tmp_path)
    assert not relayed(alice)
    stop(alice, bob, point)


def test_two_homes_whose_routers_do_not_let_through(make_node: MakeNode, internet: Internet, tmp_path: Path) -> None:
    point = public_node(make_node, internet.machine())
    alice = device(make_node, "alice", internet.site(symmetric=True).machine(), point)
    bob = device(make_node, "bob", internet.site(symmetric=True).machine(), point)
    pair(alice, bob)
    talk(alice, bob, tmp_path)
    assert relayed(alice)
    assert relayed(bob)
    assert point.status()["relay"]["counts"]["bytes"] > FILE_BYTES
    stop(alice, bob, point)
