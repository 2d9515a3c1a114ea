"""Two machines on one switch: network namespaces of their own, so that nothing else hears what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["Switch", "why_not"]

TOOLS = ("ip", "nsenter", "unshare")


def why_not() -> str:
    """Why no namespaces can be made here; empty if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    links = "ip link add switch type bridge && ip link add port1 type veth peer name lan0"
    attempt = ["unshare", "--net", "sh", "-c", links]
    done = subprocess.run(attempt, capture_output=True, text=True, check=False)
    return f"network namespaces cannot be made here: {done.stderr.strip()}" if done.returncode else ""


class Namespace:
    """A network namespace, held by a process that sleeps."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "3600"], stdin=subprocess.DEVNULL)
        self.pid = self._holder.pid
        ours, theirs = Path("/proc/self/ns/net"), Path(f"/proc/{self.pid}/ns/net")
        deadline = time.monotonic() + 10
        while os.readlink(ours) == os.readlink(theirs):
            assert time.monotonic() < deadline, "the namespace was not made"
            time.sleep(0.01)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def enter(self) -> list[str]:
        """What stands before a command that runs in it."""
        return ["nsenter", "--net", "--target", str(self.pid)]

    def run(self, *command: str) -> None:
        """Run a command in it."""
        done = subprocess.run([*self.enter, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"

    def close(self) -> None:
        """Let go of it."""
        self._holder.kill()
        self._holder.wait()


class Switch:
    """A switch with two machines on it."""

    def __init__(self) -> None:
        self.middle = Namespace()
        self.machines = [Namespace(), Namespace()]
        self.middle.run("ip", "link", "add", "switch", "type", "bridge")
        self.middle.run("ip", "link", "set", "switch", "up")
        for number, machine in enumerate(self.machines, start=1):
            self.middle.run(
                *("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "lan0"),
                *("netns", str(machine.pid)),
            )
            self.middle.run("ip", "link", "set", f"port{number}", "master", "switch", "up")
            machine.run("ip", "addr", "add", f"198.51.100.{number}/24", "dev", "lan0")
            machine.run("ip", "link", "set", "lan0", "up")

    def cut(self) -> None:
        """Drop everything that goes from one machine to the other; the cables stay in."""
        self.middle.run("ip", "link", "set", "port2", "nomaster")

    def heal(self) -> None:
        """Undo `cut`."""
        self.middle.run("ip", "link", "set", "port2", "master", "switch")

    def move(self, number: int, old: str, new: str) -> None:
        """Give a machine another address."""
        machine = self.machines[number]
        machine.run("ip", "addr", "del", f"{old}/24", "dev", "lan0")
        machine.run("ip", "addr", "add", f"{new}/24", "dev", "lan0")

    def close(self) -> None:
        """Take it all down."""
        for namespace in (*self.machines, self.middle):
            namespace.close()
