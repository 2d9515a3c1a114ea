"""Two daemons on two machines: cut cables, other addresses, killed processes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import COMMAND, TIMEOUT_S, MakeNode, Node
from tests.e2e.net.cables import Namespace, Switch, why_not
from tests.e2e.test_two_devices import pair

REASON = why_not()
if os.environ.get("SDNET_NET") == "required" and REASON:
    raise RuntimeError(REASON)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

SETTINGS = {
    "SDNET_NODE_LISTEN": "/ip4/0.0.0.0/tcp/0",
    "SDNET_DISCOVERY_MDNS_INTERFACES": "",
    "SDNET_CONNECTIONS_KEEPALIVE_INTERVAL_S": "1",
}


def start(node: Node, machine: Namespace) -> None:
    """Start a node on a machine."""
    done = subprocess.run(
        [*machine.enter, *COMMAND, "start", "--json"],
        env=node.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + node.log()


@pytest.fixture(scope="module")
def switch() -> Iterator[Switch]:
    """Two machines."""
    made = Switch()
    yield made
    made.close()


@pytest.fixture(scope="module")
def paired(make_node: MakeNode, switch: Switch) -> Iterator[tuple[Node, Node]]:
    """A running node on each, paired and connected."""
    nodes = make_node("alice", **SETTINGS), make_node("bob", **SETTINGS)
    for node, machine in zip(nodes, switch.machines, strict=True):
        start(node, machine)
    pair(*nodes)
    yield nodes
    for node in nodes:
        if node.pid is not None:
            node.stop()


def other(node: Node) -> dict[str, Any]:
    """The other device, as a node sees it."""
    (device,) = node.json("devices")
    return dict(device)


def wait_connected(*nodes: Node, timeout_s: float) -> float:
    """Wait until both say that they are connected; gives how long it took, in seconds."""
    began = time.monotonic()
    for node in nodes:
        left_s = began + timeout_s - time.monotonic()
        node.wait_until(lambda node=node: other(node)["connected"], "it is connected", timeout_s=max(left_s, 0.1))
    return time.monotonic() - began


def texts(node: Node) -> list[str]:
    """What lies in a node's inbox."""
    return [message["text"] for message in node.json("msg", "inbox")]


def test_a_cut_cable_is_noticed_and_nothing_is_lost(paired: tuple[Node, Node], switch: Switch) -> None:
    alice, bob = paired
    switch.cut()
    for node in paired:
        node.wait_until(lambda node=node: not other(node)["connected"], "the cut is noticed", timeout_s=10)
    assert "silent" in other(alice)["reason"] or other(alice)["last_error"]
    to_bob, to_alice = [f"to bob {n}" for n in range(5)], [f"to alice {n}" for n in range(3)]
    for text in to_bob:
        alice.run("msg", "send", "bob", text)
    for text in to_alice:
        bob.run("msg", "send", "alice", text)
    assert len(alice.json("msg", "outbox")) == 5
    switch.heal()
    began = time.monotonic()
    bob.wait_until(lambda: len(texts(bob)) >= 5, "all has come to bob", timeout_s=10)
    alice.wait_until(lambda: len(texts(alice)) >= 3, "all has come to alice", timeout_s=10)
    assert time.monotonic() - began <= 10
    assert texts(bob) == to_bob
    assert texts(alice) == to_alice
    alice.wait_until(lambda: alice.json("msg", "outbox") == [], "the outbox is empty")


def test_a_machine_with_another_address_is_found_again(paired: tuple[Node, Node], switch: Switch) -> None:
    alice, bob = paired
    wait_connected(alice, bob, timeout_s=20)
    switch.move(1, "198.51.100.2", "198.51.100.77")
    alice.wait_until(lambda: "198.51.100.77" in str(other(alice)["address"]), "bob's new address", timeout_s=60)
    wait_connected(alice, bob, timeout_s=60)
    assert alice.json("ping", "bob", "--count", "1")  # and what alice opens goes there, too
    assert "198.51.100.2/" not in json.dumps(bob.json("status")["addresses"])


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_daemon_is_back_within_three_seconds(paired: tuple[Node, Node], switch: Switch, killed: int) -> None:
    wait_connected(*paired, timeout_s=20)
    paired[killed].kill9()
    start(paired[killed], switch.machines[killed])
    assert wait_connected(*paired, timeout_s=3) <= 3
