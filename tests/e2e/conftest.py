"""Real nodes as processes, driven through the command line; on loopback only, all they keep in temporary folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sdnet_core.config import Config, load_config
from sdnet_core.daemon.client import ApiClient
from sdnet_core.daemon.process import lock_holder

COMMAND = [sys.executable, "-m", "sdnet_core.cli"]
TIMEOUT_S = 90.0


class Node:
    """One device: a home of its own, and the ``sdnet`` command in it.

    :param home: where everything it keeps goes.
    :param runtime: a directory at a short path for the socket.
    :param environ: further variables.
    """

    def __init__(self, home: Path, runtime: Path, name: str, environ: Mapping[str, str]) -> None:
        self.home = home
        self.name = name
        self.downloads = home / "downloads"
        own = {
            "HOME": str(home),
            "SDNET_HOME": str(home / "sdnet"),
            "SDNET_NODE_NAME": name,
            "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0",
            "SDNET_NODE_DOWNLOADS": str(self.downloads),
            "SDNET_DISCOVERY_MDNS_INTERFACES": "127.0.0.1",
            "XDG_RUNTIME_DIR": str(runtime),
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SDNET_", "XDG_"))}
        self.environ = {**kept, **own, **environ}

    @property
    def config(self) -> Config:
        """Its paths; other settings than the defaults are not in it."""
        return load_config(environ={key: self.environ[key] for key in ("SDNET_HOME", "XDG_RUNTIME_DIR")})

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.config.paths.data

    @property
    def log_file(self) -> Path:
        """Its log."""
        return self.config.paths.log_file

    @property
    def socket(self) -> Path:
        """The socket of its local API."""
        return self.config.paths.socket

    def run(
        self, *arguments: str, expect: int | None = 0, input: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run ``sdnet`` with these arguments.

        :param expect: the exit code it must end with; None for any.
        """
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=self.environ,
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if expect is not None and done.returncode != expect:
            pytest.fail(
                f"sdnet {' '.join(arguments)} at {self.name} ended with {done.returncode}, not {expect}\n"
                f"--- output\n{done.stdout}\n--- errors\n{done.stderr}\n--- end of the log\n{self.log()[-4000:]}",
                pytrace=False,
            )
        return done

    def json(self, *arguments: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Run ``sdnet … --json`` and decode what it prints."""
        return json.loads(self.run(*arguments, "--json", timeout_s=timeout_s).stdout)

    def ask(self, path: str, **query: Any) -> Any:
        """Fetch something from its local API: quicker than a command, for what is asked again and again."""
        return ApiClient(self.config).get(path, **query)

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start ``sdnet`` with these arguments and go on; its output comes through pipes. End it yourself."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen([*COMMAND, *arguments], env=self.environ, text=True, **options)

    def start(self, *arguments: str) -> dict[str, Any]:
        """Start the node in the background.

        :returns: its status.
        """
        started: dict[str, Any] = self.json("start", *arguments)
        return started

    def stop(self) -> None:
        """Stop the node."""
        self.run("stop")

    @property
    def pid(self) -> int | None:
        """The process id of the running node, None if none runs."""
        return lock_holder(self.config) or None

    def kill9(self) -> None:
        """Kill the node without a warning, and wait until it is gone."""
        pid = self.pid
        assert pid is not None, f"{self.name} does not run"
        os.kill(pid, signal.SIGKILL)
        self.wait_until(lambda: self.pid is None, "the killed node is gone", timeout_s=10)

    def log(self) -> str:
        """What the log holds."""
        return self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""

    def wait_until(self, condition: Callable[[], Any], what: str, *, timeout_s: float = 30.0) -> Any:
        """Ask again and again until a condition holds.

        :returns: its first true value.
        """
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout_s:g} s: {what}\n--- end of {self.name}'s log\n{self.log()[-4000:]}")
            time.sleep(0.02)
        return found

    def wait_connected(self, *, timeout_s: float = 30.0) -> dict[str, Any]:
        """Wait until a paired device is connected.

        :returns: it, as ``sdnet devices --json`` shows it.
        """
        device: dict[str, Any] = self.wait_until(
            lambda: next((d for d in self.ask("/devices") if d["connected"]), None),
            "a paired device is connected",
            timeout_s=timeout_s,
        )
        return device


MakeNode = Callable[..., Node]


@pytest.fixture(scope="module")
def make_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeNode]:
    """Makes nodes that are killed, if they still run, at the end of the module: ``make_node("alice", SDNET_X="y")``."""
    runtime = Path(tempfile.mkdtemp(prefix="sdnet-e2e-", dir="/tmp"))
    nodes: list[Node] = []

    def make(name: str, *, home: Path | None = None, **environ: str) -> Node:
        node = Node(home or tmp_path_factory.mktemp(name), runtime, name, environ)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        if node.pid is not None:
            node.kill9()
    shutil.rmtree(runtime)


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node of the test's own, not started."""
    return make_node("device")


@pytest.fixture(scope="module")
def running(make_node: MakeNode) -> Node:
    """A running node that the tests of a module share; leave it running."""
    shared = make_node("shared")
    shared.start()
    return shared
