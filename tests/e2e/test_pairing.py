"""Pairing as people do it, through the command line: QR code, link, and a third device that is introduced."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import MakeNode, Node
from tests.e2e.test_two_devices import pair


@pytest.fixture(scope="module")
def hub(make_node: MakeNode) -> Iterator[Node]:
    node = make_node("hub")
    node.start()
    yield node
    node.stop()


def generate(node: Node, *options: str) -> tuple[dict[str, str], subprocess.Popen[str]]:
    """Show a code; gives what ``--json`` says first and the command that waits."""
    process = node.popen("pair", "generate", "--json", *options)
    assert process.stdout is not None
    return json.loads(process.stdout.readline()), process


def test_a_link_from_standard_input_pairs_without_multicast(hub: Node, make_node: MakeNode, tmp_path: Path) -> None:
    tablet = make_node("tablet", SDNET_DISCOVERY_MDNS="false")
    tablet.start()
    picture = tmp_path / "code.svg"
    shown, showing = generate(hub, "--auto-accept", "--out", str(picture))
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    done = tablet.run("pair", "join", "-", input=shown["uri"] + "\n")
    assert "Paired with hub" in done.stdout
    out, err = showing.communicate(timeout=60)
    assert showing.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["state"] == "completed"
    tablet.wait_connected()
    assert shown["uri"] not in hub.log() + tablet.log()


def test_the_qr_code_is_drawn_with_the_link_below_it(hub: Node) -> None:
    lines = hub.run("pair", "generate", "--qr", "--no-wait").stdout.splitlines()
    assert len(lines[0].split()) == 12
    assert lines[-1].startswith("sdnet:pair?v=1&code=")
    assert all(set(line) <= set("█▀▄ ") for line in lines[1:-1])
    session = hub.json("pair", "status")[-1]
    hub.run("pair", "cancel", session["id"])


def waits(node: Node) -> bool:
    """Whether an introduction waits for the node's person."""
    return any(one["state"] == "awaiting-confirmation" for one in node.ask("/pairing/introductions"))


def test_a_third_device_is_introduced(hub: Node, make_node: MakeNode) -> None:
    phone, laptop = make_node("phone"), make_node("laptop")
    for node in (phone, laptop):
        node.start()
        pair(hub, node)
    introducing = hub.popen("pair", "introduce", "phone", "--to", "laptop")
    for node in (phone, laptop):
        node.wait_until(lambda node=node: waits(node), "the introduction has arrived")
        (asked,) = node.json("pair", "pending")
        assert asked["introducer"] == "hub"
        listing = node.run("pair", "pending").stdout
        assert "introduced by hub" in listing
        assert "introduced by hub" in node.run("pair", "accept", asked["id"]).stdout
    out, err = introducing.communicate(timeout=60)
    assert introducing.returncode == 0, err
    assert "are paired." in out
    assert "has not answered yet" in err
    phone.wait_until(lambda: all(d["connected"] for d in phone.ask("/devices")), "the two are connected")
    assert {d["name"] for d in phone.json("devices")} == {"hub", "laptop"}
    assert "completed" in laptop.run("pair", "introductions").stdout
    for node in (hub, phone, laptop):
        assert "introduction-completed" in node.run("audit").stdout
    refused = hub.run("pair", "introduce", "phone", "--to", "laptop", expect=4)
    assert "paired with the other device already" in refused.stderr
