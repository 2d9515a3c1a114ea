"""Revoking through the command line: in the middle of a transfer, over kill -9 and restart, and pairing anew."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import MakeNode, Node
from tests.e2e.test_two_devices import pair


@pytest.fixture(scope="module")
def paired(make_node: MakeNode) -> Iterator[tuple[Node, Node]]:
    """Two running, paired, connected nodes."""
    alice, bob = make_node("alice"), make_node("bob")
    alice.start()
    bob.start()
    pair(alice, bob)
    yield alice, bob
    alice.stop()
    bob.stop()


def state(node: Node) -> str:
    """What the node's one device is."""
    (device,) = node.ask("/devices")
    found: str = device["state"]
    return found


def test_names_and_trust(paired: tuple[Node, Node]) -> None:
    alice, _ = paired
    assert "is called desk here" in alice.run("devices", "rename", "bob", "desk").stdout
    shown = alice.run("devices", "info", "desk").stdout
    assert "desk (calls itself bob)" in shown
    assert alice.json("status")["device_id"] not in shown
    alice.run("ping", "bob", "--count", "1")
    info = alice.json("devices", "info", "bob")
    assert info["fingerprint"]["words"] in shown
    assert info["connection"]["bytes_received"] > 0
    assert "between" not in alice.run("devices", "rename", "desk", "x" * 65, expect=1).stdout
    alice.run("devices", "rename", "desk", "--reset")
    alice.run("devices", "rename", "bob", expect=2)
    assert "bob is verified." in alice.run("devices", "trust", "bob", "verified").stdout
    assert alice.json("devices", "trust", "bob", "trusted")["trust"] == "trusted"
    alice.run("devices", "trust", "bob", "revoked", expect=2)
    assert "Nothing waits" in alice.run("approvals").stderr
    assert "No question" in alice.run("approvals", "approve", "3f2a", expect=1).stderr


def received(node: Node) -> int:
    """How much of what it is being sent a node has."""
    return sum(transfer["done_bytes"] for transfer in node.json("transfers") if transfer["direction"] == "receive")


def when(node: Node, kind: str) -> float:
    """When the latest event of a kind was, seconds since the epoch."""
    latest: float = json.loads(node.run("events", "--type", kind, "-n", "1", "--json").stdout)["at"]
    return latest


def test_revoke_in_the_middle_of_a_transfer_and_pair_anew(
    paired: tuple[Node, Node], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """``pytest -s`` prints how long it took from the command until either side was cut off."""
    alice, bob = paired
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        os.truncate(file.fileno(), 8 << 30)  # nobody waits for its end
    sending = bob.popen("send", str(large), "--to", "alice")
    bob.wait_until(
        lambda: any(transfer.get("done_bytes", 0) > 1 << 20 for transfer in bob.ask("/file-transfer/transfers")),
        "it is under way",
    )
    began = time.time()
    assert "bob is revoked. It was told." in alice.run("devices", "revoke", "bob").stdout
    got = received(alice)
    assert state(alice) == "revoked"
    _, err = sending.communicate(timeout=60)
    assert sending.returncode != 0
    assert err
    bob.wait_until(lambda: state(bob) == "expired", "bob is told")
    took = {node.name: when(node, "connection-lost") - began for node in paired}
    record_property("revoke_to_cut_s", took)
    print("from the command to the cut, seconds:", {n: round(s, 3) for n, s in took.items()})  # noqa: T201
    assert when(alice, "connection-lost") <= when(alice, "device-revoked")  # cut before anything else
    assert received(alice) == got > 0  # nothing came any more
    assert not (alice.downloads / "large.bin").exists()

    for node in (alice, bob):
        node.kill9()
        node.start()
    assert state(alice) == "revoked"
    assert state(bob) == "expired"
    assert "pair it again" in bob.run("ping", "alice", "--count", "1", expect=1).stderr
    assert "revoked" in alice.run("ping", "bob", "--count", "1", expect=1).stderr
    assert "only pairing it again" in alice.run("devices", "trust", "bob", "trusted", expect=1).stderr

    audited = [json.loads(line) for line in alice.run("audit", "--json").stdout.splitlines()]
    assert [line["kind"] for line in audited if line["kind"].startswith("device-")].count("device-revoked") == 1
    assert "as they were written" in alice.run("audit", "verify").stdout
    assert "device-revoked" in alice.run("audit", "--since", "1h", "--kinds", "device-revoked").stdout
    assert alice.run("audit", "--kinds", "device-renamed", "--since", "2100-01-01").stdout == ""

    pair(alice, bob)
    assert alice.json("ping", "bob", "--count", "1")["received"] == 1


def test_a_changed_audit_log_is_noticed(paired: tuple[Node, Node]) -> None:
    alice, _ = paired
    file = alice.data / "audit.log"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"device_name":"bob"', b'"device_name":"eve"', 1))
    assert "MAC is wrong" in alice.run("audit", "verify", expect=1).stdout
    assert alice.json("status")["storage"]["recovered"] == []
    file.write_bytes(whole)


def test_forget(paired: tuple[Node, Node]) -> None:
    alice, bob = paired
    assert "alice is forgotten." in bob.run("devices", "forget", "alice").stdout
    assert bob.json("devices") == []
    alice.wait_until(lambda: state(alice) == "expired", "alice is told")
