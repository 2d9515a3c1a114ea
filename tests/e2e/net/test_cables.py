"""Two daemons on two machines: cut cables, other addresses, killed processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sdnet_core.daemon.client import ApiClient
from tests.e2e.conftest import COMMAND, TIMEOUT_S, MakeNode, Node
from tests.e2e.net.cables import Namespace, Switch, why_not
from tests.e2e.test_two_devices import pair

REASON = why_not()
if os.environ.get("SDNET_NET") == "required" and REASON:
    raise RuntimeError(REASON)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

KILLS = int(os.environ.get("SDNET_TEST_KILLS", "3"))
ROOT = Path(__file__).parents[3]
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
    (device,) = node.ask("/devices")
    return dict(device)


def wait_connected(*nodes: Node, timeout_s: float) -> None:
    """Wait until both say that they are connected."""
    for node in nodes:
        node.wait_until(lambda node=node: other(node)["connected"], "it is connected", timeout_s=timeout_s)


def texts(node: Node) -> list[str]:
    """What lies in a node's inbox."""
    client, found, last = ApiClient(node.config), [], 0
    while messages := client.get("/messaging/inbox", since=last):
        found += [message["text"] for message in messages]
        last = messages[-1]["number"]
    return found


class Flow:
    """Sends numbered texts one after the other, whatever happens to the node; a process of its own.

    :param folder: where it notes what the node has accepted.
    """

    def __init__(self, sender: Node, receiver: str, folder: Path) -> None:
        folder.mkdir()
        self._file = folder / "accepted"
        self._file.touch()
        command = [sys.executable, "-m", "tests.e2e.net.flow", receiver, str(self._file)]
        self._process = subprocess.Popen(command, env=sender.environ, cwd=ROOT)

    def accepted(self) -> list[str]:
        """What the node has said that it will deliver."""
        return self._file.read_text().splitlines()

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        self._process.wait()


def test_a_cut_cable_is_noticed_and_nothing_is_lost(paired: tuple[Node, Node], switch: Switch) -> None:
    alice, bob = paired
    switch.cut()
    for node in paired:
        node.wait_until(lambda node=node: not other(node)["connected"], "the cut is noticed", timeout_s=60)
    assert "silent" in other(alice)["reason"] or other(alice)["last_error"]
    to_bob, to_alice = [f"to bob {n}" for n in range(5)], [f"to alice {n}" for n in range(3)]
    for text in to_bob:
        alice.run("msg", "send", "bob", text)
    for text in to_alice:
        bob.run("msg", "send", "alice", text)
    assert len(alice.json("msg", "outbox")) == 5
    switch.heal()
    bob.wait_until(lambda: len(texts(bob)) >= 5, "all has come to bob", timeout_s=60)
    alice.wait_until(lambda: len(texts(alice)) >= 3, "all has come to alice", timeout_s=60)
    assert texts(bob) == to_bob
    assert texts(alice) == to_alice
    alice.wait_until(lambda: alice.ask("/messaging/outbox") == [], "the outbox is empty")


def test_a_machine_with_another_address_is_found_again(paired: tuple[Node, Node], switch: Switch) -> None:
    alice, bob = paired
    wait_connected(alice, bob, timeout_s=60)
    switch.move(1, "198.51.100.2", "198.51.100.77")
    alice.wait_until(lambda: "198.51.100.77" in str(other(alice)["address"]), "bob's new address", timeout_s=60)
    wait_connected(alice, bob, timeout_s=60)
    assert alice.json("ping", "bob", "--count", "1")  # and what alice opens goes there, too
    assert "198.51.100.2/" not in json.dumps(bob.json("status")["addresses"])


@contextmanager
def frozen(node: Node) -> Iterator[None]:
    """Stop a node's process for the length of the block, as when its machine sleeps: connections stay, unanswered."""
    pid = node.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("sleeper", [0, 1] if "SDNET_LONG_TESTS" in os.environ else [1])
def test_a_machine_that_sleeps_is_missed_and_there_again_when_it_wakes(paired: tuple[Node, Node], sleeper: int) -> None:
    wait_connected(*paired, timeout_s=60)
    asleep, awake = paired[sleeper], paired[1 - sleeper]
    with frozen(asleep):
        awake.wait_until(lambda: not other(awake)["connected"], "it is missed")
        awake.run("msg", "send", asleep.name, f"while {asleep.name} slept")
    asleep.wait_until(lambda: f"while {asleep.name} slept" in texts(asleep), "what was said meanwhile", timeout_s=60)
    wait_connected(*paired, timeout_s=60)


@pytest.mark.skipif("SDNET_LONG_TESTS" not in os.environ, reason="waits for time-outs: nox -s net")
def test_a_handshake_that_fails_is_tried_again(paired: tuple[Node, Node], switch: Switch) -> None:
    alice, bob = paired
    wait_connected(*paired, timeout_s=60)
    alice.kill9()
    with frozen(bob):  # its system takes connections, and nobody answers on them
        start(alice, switch.machines[0])
        alice.wait_until(lambda: other(alice)["attempts"] >= 2, "it was tried in vain", timeout_s=90)
        assert other(alice)["last_error"]
    wait_connected(*paired, timeout_s=60)


def test_kills_of_either_side_lose_nothing_and_repeat_nothing(
    paired: tuple[Node, Node], switch: Switch, tmp_path: Path
) -> None:
    """`SDNET_TEST_KILLS` says how many; ``nox -s net`` does 50."""
    wait_connected(*paired, timeout_s=60)
    choice = random.Random(11)
    before = [len(texts(node)) for node in paired]
    with Flow(paired[0], "bob", tmp_path / "0") as to_bob, Flow(paired[1], "alice", tmp_path / "1") as to_alice:
        for _ in range(KILLS):
            goal = [len(flow.accepted()) + choice.randint(1, 10) for flow in (to_bob, to_alice)]
            paired[0].wait_until(
                lambda goal=goal: all(
                    len(flow.accepted()) >= wanted for flow, wanted in zip((to_bob, to_alice), goal, strict=True)
                ),
                "messages flow",
                timeout_s=90,
            )
            number = choice.randrange(2)
            paired[number].kill9()
            start(paired[number], switch.machines[number])
    accepted = to_bob.accepted(), to_alice.accepted()
    for sender, receiver, number in ((paired[0], paired[1], 0), (paired[1], paired[0], 1)):
        sender.wait_until(lambda sender=sender: sender.ask("/messaging/outbox") == [], "all is delivered", timeout_s=60)
        came = texts(receiver)[before[1 - number] :]
        assert [text for text in accepted[number] if text not in set(came)] == [], "lost"
        assert len(came) == len(set(came)), "came twice"
        assert came == sorted(came), "out of order"


@pytest.mark.skipif("SDNET_LONG_TESTS" not in os.environ, reason="takes two minutes: nox -s net")
def test_silence_is_noticed_in_time_at_the_default_keepalive(make_node: MakeNode) -> None:
    settings = {key: value for key, value in SETTINGS.items() if "KEEPALIVE" not in key}
    switch = Switch()
    nodes = make_node("carol", **settings), make_node("dave", **settings)
    try:
        for node, machine in zip(nodes, switch.machines, strict=True):
            start(node, machine)
        pair(*nodes)
        wait_connected(*nodes, timeout_s=60)
        switch.cut()
        for node in nodes:
            # Three times 30 s are missed, and the first of them may have just begun.
            node.wait_until(lambda node=node: not other(node)["connected"], "the silence is noticed", timeout_s=150)
        switch.heal()
        wait_connected(*nodes, timeout_s=60)
    finally:
        for node in nodes:
            if node.pid is not None:
                node.stop()
        switch.close()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_daemon_is_back(paired: tuple[Node, Node], switch: Switch, killed: int) -> None:
    """How soon, `nox -s bench_messages` measures."""
    wait_connected(*paired, timeout_s=60)
    paired[killed].kill9()
    start(paired[killed], switch.machines[killed])
    wait_connected(*paired, timeout_s=60)
