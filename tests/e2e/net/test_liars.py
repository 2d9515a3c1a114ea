"""Public nodes that lie in the path of a pairing between daemons: they deny or delay it, and never make another one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import COMMAND, MakeNode, Node
from tests.e2e.net.stage import LONG, Stage
from tests.e2e.net.topologies import NODE_PORT, Machine, wait, why_not

REASON = why_not()
if os.environ.get("SDNET_NET") == "required" and REASON:
    raise RuntimeError(REASON)
# Among all tests, `test_pairing_lies.py`, `test_dht.py` and `test_relay.py` tell such lies within one process.
pytestmark = pytest.mark.skipif(not LONG or bool(REASON), reason=REASON or "Part of nox -s net.")

NOT_THERE = "The meeting points know no device with this code"
NO_HELP = "The meeting points are of no help now: No meeting point answers"
NOT_REACHED = r"was found, but could not be reached at \d+ address|was reached, but did not pair in time"

RECORD_LIES = {
    "drops records": NOT_THERE,
    "gives old records": NOT_REACHED,
    "gives another's record": NOT_THERE,
    "cuts records": NOT_THERE,
    "says nothing": NO_HELP,
}
RELAY_LIES = ("denies places", "connects to another", "swallows", "breaks circuits", "turns bits over", "repeats")


class LyingNode:
    """``lying_node.py`` on a machine.

    :ivar address: as of any public node.
    """

    def __init__(self, machine: Machine) -> None:
        script = Path(__file__).with_name("lying_node.py")
        listen = f"/ip4/{machine.address}/tcp/{NODE_PORT}"
        self._process = subprocess.Popen(
            [*machine.enter, COMMAND[0], str(script), listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lie = ""
        self.address = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the lying node has ended"
        return line

    def tell(self, lie: str) -> dict[str, Any]:
        """Tell this lie from now on; gives what it has done so far."""
        assert self._process.stdin is not None
        self.lie = self.lie if lie == "forgets" else lie
        self._process.stdin.write(f"{lie}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    @property
    def so_far(self) -> dict[str, Any]:
        """What it has done so far."""
        return self.tell(self.lie)

    def close(self) -> None:
        """End it."""
        self._process.communicate("", timeout=60)


@dataclass
class Device:
    """A daemon and its machine."""

    node: Node
    machine: Machine


class Cast:
    """Devices that have only the liar to meet at, and two that have an honest node besides; carol shows another code.

    :param machine: gives a machine for a device.
    """

    def __init__(self, stage: Stage, machine: Callable[[], Machine], *, relay: bool) -> None:
        self._internet = stage.internet
        self._relay = relay
        self.liar: LyingNode = stage.closing(LyingNode(stage.internet.machine()))
        honest = stage.point(stage.internet.machine())

        def device(name: str, *points: Any) -> Device:
            place = machine()
            settings = {"SDNET_DISCOVERY_MDNS": "false", "SDNET_DISCOVERY_RELAY": json.dumps(relay)}
            listen = "/ip4/0.0.0.0/tcp/4100"
            return Device(stage.device(name, place, *points, SDNET_NODE_LISTEN=listen, **settings), place)

        self.alice, self.bob, self.carol = (device(name, self.liar) for name in ("alice", "bob", "carol"))
        self.dave, self.erin = (device(name, self.liar, honest) for name in ("dave", "erin"))

    def fails_alone(self, lie: str, diagnosis: str) -> None:
        """Where nobody but the liar could help, no pairing comes about, and the person is told why."""
        shows, joins = self.alice.node, self.bob.node
        with self._lying(lie, self.alice, self.bob) as words:
            joined = joins.run("pair", "join", "-", "--timeout", "8", input=words, expect=None)
            assert joined.returncode != 0, joined.stdout
            assert re.search(diagnosis, joined.stderr), joined.stderr
            assert shows.json("devices") == joins.json("devices") == []

    def succeeds_besides(self, lie: str) -> None:
        """With an honest node besides, the right two are paired."""
        shows, joins = self.dave.node, self.erin.node
        with self._lying(lie, self.dave, self.erin) as words:
            joined = joins.run("pair", "join", "-", "--timeout", "60", input=words, expect=None)
            assert joined.returncode == 0, joined.stderr + shows.log()[-4000:]
            for one, other in ((shows, joins), (joins, shows)):
                (device,) = one.json("devices")
                assert device["device_id"] == other.json("status")["device_id"]
        for one, other in ((shows, joins), (joins, shows)):
            one.run("devices", "forget", other.name)

    @contextmanager
    def _lying(self, lie: str, shows: Device, joins: Device) -> Iterator[str]:
        """The words that a device shows, while carol shows others and accepts whoever knows them, and the liar lies."""
        self.liar.tell("")
        for one in (shows, joins, self.carol):
            wait(lambda one=one: self._has_met_the_liar(one.node), f"{one.node.name} has met the liar", one.node)
        self.liar.tell("forgets")
        words, ours = self._show(shows)
        _, decoy = self._show(self.carol)
        wait(lambda: self.liar.so_far["cards"] >= 2, "both are published", shows.node, self.carol.node)
        if lie == "gives old records":
            taken = self.liar.so_far["taken"]
            self._swap(shows.machine, self.carol.machine)
            wait(lambda: self.liar.so_far["taken"] >= taken + 2, "both are published anew", shows.node, self.carol.node)
        before = self.liar.tell(lie)["told"].get(lie, 0)
        try:
            yield words
            assert self.liar.so_far["told"].get(lie, 0) > before, "the lie was told"
            assert self.carol.node.json("devices") == []
            assert self.carol.node.json("pair", "status", decoy)["state"] == "waiting-for-connection"
        finally:
            self.liar.tell("")
            for node, session in ((self.carol.node, decoy), (shows.node, ours)):
                node.run("pair", "cancel", session, expect=None)  # unless it is over

    def _has_met_the_liar(self, node: Node) -> bool:
        meeting = node.json("status")["meeting"]
        return self.liar.address.rpartition("/")[2] in meeting["relays" if self._relay else "reached"]

    @staticmethod
    def _show(device: Device) -> tuple[str, str]:
        """The words and the session's id."""
        shown = device.node.json("pair", "generate", "--auto-accept", "--no-wait")
        return shown["code"], shown["id"]

    def _swap(self, one: Machine, other: Machine) -> None:
        """Two machines change their addresses."""
        addresses = [one.address, other.address]
        for machine, address in zip((one, other), addresses, strict=True):
            machine.shell(f"ip addr del {address}/24 dev eth0")
        for machine, address in zip((other, one), addresses, strict=True):
            machine.shell(f"ip addr add {address}/24 dev eth0")
        for machine in self._internet.machines:
            machine.shell("ip neigh flush dev eth0")


@pytest.fixture(scope="module")
def in_public(make_node: MakeNode) -> Iterator[Cast]:
    """Every device can be reached by every other one."""
    stage = Stage(make_node)
    try:
        yield Cast(stage, stage.internet.machine, relay=False)
    finally:
        stage.close()


@pytest.fixture(scope="module")
def at_homes(make_node: MakeNode) -> Iterator[Cast]:
    """Every device is behind a router of its own that lets no one through: all goes through relays."""
    stage = Stage(make_node)
    try:
        yield Cast(stage, lambda: stage.internet.site(symmetric=True).machine(), relay=True)
    finally:
        stage.close()


@pytest.mark.parametrize("lie", RECORD_LIES)
def test_a_node_that_lies_about_records(in_public: Cast, lie: str) -> None:
    in_public.fails_alone(lie, RECORD_LIES[lie])
    in_public.succeeds_besides(lie)


@pytest.mark.parametrize("lie", RELAY_LIES)
def test_a_relay_that_lies(at_homes: Cast, lie: str) -> None:
    at_homes.fails_alone(lie, NOT_REACHED)
    at_homes.succeeds_besides(lie)
