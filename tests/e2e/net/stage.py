"""Public nodes and devices on machines in namespaces, all gone at the end; what the tests there have in common."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.e2e.conftest import MakeNode, Node
from tests.e2e.net.topologies import NODE_PORT, SETTINGS, Internet, Lan, Machine, PublicNodeProcess, make_file, start

__all__ = ["FILE_BYTES", "LONG", "Stage", "other", "relayed", "talk", "temporary_nodes"]

LONG = os.environ.get("SDNET_NET") == "required"
"""Whether this is `nox -s net` and not the short form among all tests."""
FILE_BYTES = (64 if LONG else 4) << 20


class Stage:
    """Machines, public nodes and devices, all gone at the end."""

    def __init__(self, make_node: MakeNode) -> None:
        self._make_node = make_node
        self._closing = ExitStack()

    @cached_property
    def internet(self) -> Internet:
        return self.closing(Internet())

    def closing(self, made: Any) -> Any:
        self._closing.callback(made.close)
        return made

    def point(self, machine: Machine, **settings: str) -> PublicNodeProcess:
        process = PublicNodeProcess(self._make_node("node"), machine, f"/ip4/0.0.0.0/tcp/{NODE_PORT}", **settings)
        self._closing.callback(process.stop)
        process.start()
        return process

    def device(self, name: str, machine: Machine, *points: PublicNodeProcess, **settings: str) -> Node:
        bootstrap = ",".join(point.address for point in points)
        node = self._make_node(name, **{**SETTINGS, "SDNET_DISCOVERY_BOOTSTRAP": bootstrap, **settings})
        self._closing.callback(lambda: node.pid is None or node.kill9())
        start(node, machine)
        return node

    def routed_lans(self, count: int) -> list[Machine]:
        """A machine on each of some LANs behind one router; no multicast gets from one to another."""
        router, machines = self.closing(Machine()), []
        router.forward()
        for number in range(count):
            lan, machine = self.closing(Lan(f"10.{number + 1}.0")), self.closing(Machine())
            lan.connect(router, f"lan{number}", "1")
            lan.connect(machine, "eth0", "2")
            machine.shell(f"ip route add default via {lan.prefix}.1")
            machines.append(machine)
        return machines

    def close(self) -> None:
        self._closing.close()


@contextmanager
def temporary_nodes() -> Iterator[MakeNode]:
    """Makes nodes where pytest does not; what they keep is deleted at the end. Stop them before."""
    with tempfile.TemporaryDirectory(prefix="sdnet-net-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        runtime = Path(folder) / "run"
        runtime.mkdir(mode=0o700)
        numbers = itertools.count()

        def make(name: str, **environ: str) -> Node:
            home = Path(folder) / f"{name}{next(numbers)}"
            home.mkdir()
            return Node(home, runtime, name, environ)

        yield make


def other(node: Node) -> dict[str, Any]:
    (found,) = node.ask("/devices")
    return dict(found)


def relayed(node: Node) -> bool:
    return "p2p-circuit" in str(other(node)["address"])


def talk(alice: Node, bob: Node, tmp_path: Path, size: int = FILE_BYTES) -> None:
    """A message and a file."""
    alice.run("msg", "send", "bob", "hello")
    assert "hello" in [message["text"] for message in bob.json("msg", "inbox")]
    file = make_file(tmp_path / "file.bin", size)
    alice.run("send", str(file), "--to", "bob", timeout_s=300)
    assert (bob.downloads / "file.bin").read_bytes() == file.read_bytes()
