"""Whole networks in namespaces: LANs, routers that translate addresses, and an internet with a public node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from sdnet_core.daemon.process import lock_holder
from sdnet_core.public_node import config_of_public_node
from tests.e2e.conftest import COMMAND, TIMEOUT_S, Node
from tests.e2e.net.cables import Namespace
from tests.e2e.net.cables import why_not as why_no_namespaces

__all__ = ["Internet", "Lan", "PublicNodeProcess", "Site", "start", "why_not"]

SETTINGS = {
    "SDNET_NODE_LISTEN": "/ip4/0.0.0.0/tcp/0",
    "SDNET_DISCOVERY_MDNS_INTERFACES": "",
    "SDNET_CONNECTIONS_KEEPALIVE_INTERVAL_S": "2",
}
NODE_PORT = 4001


def why_not() -> str:
    """Why these networks cannot be made here; empty if they can."""
    if reason := why_no_namespaces():
        return reason
    if shutil.which("nft") is None:
        return "not installed: nft (package nftables)"
    rules = "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100 ; }; "
    rules += "add rule ip nat post masquerade random,fully-random"
    done = subprocess.run(["unshare", "--net", "nft", rules], capture_output=True, text=True, check=False)
    return f"addresses cannot be translated here: {done.stderr.strip()}" if done.returncode else ""


class Machine(Namespace):
    """A machine that devices run on."""

    def shell(self, script: str) -> None:
        """Run a shell script in it."""
        self.run("sh", "-ec", script)

    def shell_output(self, script: str) -> str:
        """Run a shell script in it; gives what it prints."""
        done = subprocess.run([*self.enter, "sh", "-ec", script], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    @property
    def address(self) -> str:
        """Its IPv4 address on ``eth0``."""
        return self.shell_output("ip -4 -o addr show eth0 | awk '{print $4}' | cut -d/ -f1")

    def forward(self) -> None:
        """Let it forward packets."""
        self.shell("echo 1 > /proc/sys/net/ipv4/ip_forward")

    def plug(self, other: Namespace, name: str, port: str) -> None:
        """Lay a cable to another one: ``name`` here, ``port`` there."""
        other.run("ip", "link", "add", port, "type", "veth", "peer", "name", name, "netns", str(self.pid))


class Lan:
    """A switch, with machines and a router on it.

    :param prefix: of its addresses, such as ``192.168.1``.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.switch = Machine()
        self.switch.shell("ip link add switch type bridge; ip link set switch up")
        self._ports = 0

    def connect(self, machine: Machine, name: str, address: str) -> None:
        """Put a machine on it.

        :param name: of its interface.
        :param address: the last part of its address.
        """
        self._ports += 1
        port = f"port{self._ports}"
        machine.plug(self.switch, name, port)
        self.switch.shell(f"ip link set {port} master switch up")
        machine.shell(f"ip addr add {self.prefix}.{address}/24 dev {name}; ip link set {name} up")

    def close(self) -> None:
        """Take it down."""
        self.switch.close()


class Site:
    """A LAN behind a router that translates addresses, as at home.

    :param internet: what it is connected to.
    :param number: makes its addresses.
    :param symmetric: every connection gets another port outside, so that no hole can be punched.
    :param prefix: of the LAN's addresses.
    """

    def __init__(self, internet: Internet, number: int, *, symmetric: bool = False, prefix: str = "") -> None:
        self.lan = Lan(prefix or f"192.168.{number}")
        self.router = Machine()
        self.machines: list[Machine] = []
        internet.lan.connect(self.router, "wan0", str(100 + number))
        self.lan.connect(self.router, "lan0", "1")
        self.router.forward()
        how = "masquerade random,fully-random" if symmetric else "masquerade"
        self.router.run(
            "nft",
            "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100 ; }; "
            f"add rule ip nat post oifname wan0 {how}; "
            "add table ip wall; "
            "add chain ip wall in { type filter hook input priority 0 ; policy drop ; }; "
            "add rule ip wall in ct state established,related accept; "
            "add rule ip wall in iifname lan0 accept; "
            "add chain ip wall through { type filter hook forward priority 0 ; policy drop ; }; "
            "add rule ip wall through ct state established,related accept; "
            "add rule ip wall through iifname lan0 oifname wan0 accept",
        )

    def machine(self) -> Machine:
        """One more machine on the LAN."""
        machine = Machine()
        self.machines.append(machine)
        self.join(machine)
        return machine

    def join(self, machine: Machine) -> None:
        """Plug a machine in."""
        number = self.machines.index(machine) if machine in self.machines else len(self.machines)
        self.lan.connect(machine, "eth0", str(10 + number + (50 if machine not in self.machines else 0)))
        machine.shell(f"ip route add default via {self.lan.prefix}.1")

    def leave(self, machine: Machine) -> None:
        """Unplug a machine."""
        machine.shell("ip link del eth0")

    def close(self) -> None:
        """Take it down."""
        for namespace in (*self.machines, self.router):
            namespace.close()
        self.lan.close()


class Internet:
    """What all sites have in common, with room for a public node."""

    def __init__(self) -> None:
        self.lan = Lan("203.0.113")
        self._sites: list[Site] = []
        self._machines: list[Machine] = []

    def site(self, **options: Any) -> Site:
        """One more site."""
        site = Site(self, len(self._sites) + 1, **options)
        self._sites.append(site)
        return site

    def machine(self) -> Machine:
        """A machine that everybody can reach."""
        machine = Machine()
        self._machines.append(machine)
        self.lan.connect(machine, "eth0", str(10 + len(self._machines)))
        return machine

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The machines that everybody can reach."""
        return tuple(self._machines)

    def close(self) -> None:
        """Take it all down."""
        for site in self._sites:
            site.close()
        for machine in self._machines:
            machine.close()
        self.lan.close()


class PublicNodeProcess:
    """``sdnet node run`` on a machine.

    :param settings: further variables, such as limits.
    """

    def __init__(self, node: Node, machine: Machine, listen: str, **settings: str) -> None:
        self._node = node
        self._machine = machine
        self._listen = listen
        self._process: subprocess.Popen[str] | None = None
        self.environ = {**node.environ, **settings}
        self.address = ""

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(
            [*self._machine.enter, *COMMAND, "node", "run", "--listen", self._listen, "--json"],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        with self._process.stdout as output:
            line = output.readline()
        assert line, "the public node did not start:\n" + self.log()
        self.address = json.loads(line)["addresses"][0]

    def log(self) -> str:
        """What its log holds."""
        file = config_of_public_node(self._node.config).paths.log_file
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def status(self) -> dict[str, Any]:
        """What ``sdnet node status --json`` says."""
        found: dict[str, Any] = self._node.json("node", "status")
        return found

    def kill9(self) -> None:
        """Kill it without a warning."""
        assert self._process is not None
        pid = lock_holder(config_of_public_node(self._node.config))
        if pid:
            os.kill(pid, signal.SIGKILL)
        self._process.wait(timeout=30)

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            pid = lock_holder(config_of_public_node(self._node.config))
            if pid:
                os.kill(pid, signal.SIGTERM)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def start(node: Node, machine: Namespace, **settings: str) -> None:
    """Start a device's daemon on a machine.

    :param settings: further variables.
    """
    done = subprocess.run(
        [*machine.enter, *COMMAND, "start", "--json"],
        env={**node.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + node.log()


def wait(condition: Any, what: str, *nodes: Node, timeout_s: float = 60.0) -> Any:
    """Ask again and again until a condition holds; gives its first true value."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {node.name}\n{node.log()[-6000:]}" for node in nodes)
            raise AssertionError(f"not within {timeout_s:g} s: {what}\n{logs}")
        time.sleep(0.1)
    return found


def make_file(path: Path, size: int) -> Path:
    """A file of random bytes."""
    with path.open("wb") as file:
        while size > 0:
            file.write(os.urandom(min(size, 1 << 20)))
            size -= 1 << 20
    return path
