"""Nodes and devices that are killed, move, or run into a relay's limits: all come back without a person."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import COMMAND, MakeNode, Node
from tests.e2e.net.stage import FILE_BYTES, LONG, Stage, other, relayed, talk
from tests.e2e.net.test_cables import frozen
from tests.e2e.net.topologies import make_file, start, wait, why_not
from tests.e2e.test_two_devices import pair

REASON = why_not()
if os.environ.get("SDNET_NET") == "required" and REASON:
    raise RuntimeError(REASON)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
MIB = 1 << 20


@pytest.fixture
def stage(make_node: MakeNode) -> Iterator[Stage]:
    made = Stage(make_node)
    yield made
    made.close()


def connected(*nodes: Node) -> None:
    for node in nodes:
        wait(lambda node=node: other(node)["connected"], f"{node.name}'s device is connected", *nodes)


def sending(node: Node, file: Path) -> subprocess.Popen[str]:
    """Begin to send a file to bob."""
    return subprocess.Popen(
        [*COMMAND, "send", str(file), "--to", "bob"],
        env=node.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str], file: Path, alice: Node, bob: Node) -> None:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out + alice.log()[-4000:] + bob.log()[-4000:]
    assert (bob.downloads / file.name).read_bytes() == file.read_bytes()


def part_bytes(node: Node) -> int:
    """How much of files that are still coming is on the disk."""
    files = [*node.downloads.rglob("*"), *node.data.rglob("*.part")] if node.downloads.exists() else []
    return sum(file.stat().st_size for file in files if file.is_file())


def test_everything_is_killed_and_comes_back(stage: Stage, tmp_path: Path) -> None:
    point = stage.point(stage.internet.machine())
    homes = [stage.internet.site(symmetric=True).machine() for _ in range(2)]
    alice, bob = (stage.device(name, home, point) for name, home in zip(("alice", "bob"), homes, strict=True))
    pair(alice, bob)
    point.kill9()
    for node in (alice, bob):
        wait(lambda node=node: not other(node)["connected"], "the loss of the relay is noticed", alice, bob)
    point.start()
    connected(alice, bob)
    talk(alice, bob, tmp_path, MIB)
    for node, home in ((alice, homes[0]), (bob, homes[1])):
        node.kill9()
        start(node, home)
        connected(alice, bob)
    alice.run("msg", "send", "bob", "back again")
    wait(lambda: "back again" in str(bob.ask("/messaging/inbox")), "the message arrives", alice, bob)


@pytest.mark.skipif(not LONG, reason="Part of nox -s net.")
def test_a_device_moves_in_the_middle_of_a_transfer(stage: Stage, tmp_path: Path) -> None:
    point = stage.point(stage.internet.machine())
    first, second = stage.internet.site(), stage.internet.site()
    home = stage.internet.site().machine()
    laptop = first.machine()
    alice, bob = stage.device("alice", home, point), stage.device("bob", laptop, point)
    pair(alice, bob)
    file = make_file(tmp_path / "moving.bin", 4 * FILE_BYTES)
    process = sending(alice, file)
    wait(lambda: part_bytes(bob) > MIB, "some of the file has come", alice, bob)
    first.leave(laptop)
    second.join(laptop)
    finished(process, file, alice, bob)
    connected(alice, bob)


@pytest.mark.skipif(not LONG, reason="Part of nox -s net.")
def test_a_device_that_sleeps_wakes_up_elsewhere(stage: Stage) -> None:
    point = stage.point(stage.internet.machine())
    first, second = stage.internet.site(), stage.internet.site()
    laptop = first.machine()
    alice = stage.device("alice", stage.internet.site().machine(), point)
    bob = stage.device("bob", laptop, point)
    pair(alice, bob)
    with frozen(bob):
        # That takes longer than the keepalive.
        wait(lambda: not other(alice)["connected"], "the silence is noticed", alice)
        alice.run("msg", "send", "bob", "good morning")
        first.leave(laptop)
        second.join(laptop)
    connected(alice, bob)
    wait(lambda: "good morning" in str(bob.ask("/messaging/inbox")), "the message arrives", alice, bob)
    assert alice.json("ping", "bob", "--count", "1")


def test_a_relayed_link_outlives_its_circuits(stage: Stage, tmp_path: Path) -> None:
    limits = {"SDNET_PUBLIC_NODE_CIRCUIT_BYTES": str(FILE_BYTES // 2), "SDNET_PUBLIC_NODE_CIRCUIT_S": "20"}
    point = stage.point(stage.internet.machine(), **limits)
    alice = stage.device("alice", stage.internet.site(symmetric=True).machine(), point)
    bob = stage.device("bob", stage.internet.site(symmetric=True).machine(), point)
    pair(alice, bob)
    talk(alice, bob, tmp_path)
    assert relayed(alice)
    counts = point.status()["relay"]["counts"]
    assert counts["connected"] >= 3, counts
    if LONG:
        before = counts.get("connected")
        wait(lambda: point.status()["relay"]["counts"]["connected"] > before + 1, "fresh circuits in time", alice, bob)
        assert other(alice)["connected"]
        alice.run("msg", "send", "bob", "still here")


@pytest.mark.skipif(not LONG, reason="Part of nox -s net.")
def test_strangers_that_take_places_do_not_keep_an_honest_device_out(stage: Stage, tmp_path: Path) -> None:
    """Thirty strangers on one address ask for all the places there are."""
    point = stage.point(
        stage.internet.machine(),
        SDNET_PUBLIC_NODE_MAX_RESERVATIONS="16",
        SDNET_PUBLIC_NODE_MAX_RESERVATIONS_PER_ADDRESS="4",
    )
    attacker = stage.internet.machine()
    script = Path(__file__).with_name("greedy_stranger.py")
    command = [*attacker.enter, COMMAND[0], str(script), point.address, "30"]
    greedy = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert greedy.stdout is not None
        assert greedy.stdout.readline().strip() == "4 of 30"
        alice = stage.device("alice", stage.internet.site(symmetric=True).machine(), point)
        bob = stage.device("bob", stage.internet.site(symmetric=True).machine(), point)
        pair(alice, bob)
        assert relayed(alice)
    finally:
        greedy.communicate("", timeout=60)
