"""Two real nodes with every kind of bad plugin: each is listed with its state and reason, all else works."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdnet_core.testing import paired_daemons

HEADER = """
import anyio
from sdnet_core import ProtocolHandler, ProtocolSpec, ServiceSpec, hookimpl
from sdnet_core.events import PluginFailed

class Echo(ProtocolHandler):
    protocol_name = "bad-echo"
    async def handle_request(self, device, data):
        return data
"""
PLUGINS = {
    "imports": "raise RuntimeError('out of order')",
    "async_hook": """
class Plugin:
    @hookimpl
    async def sdnet_protocols(self, ctx):
        return []
""",
    "first_echo": """
class Plugin:
    @hookimpl
    def sdnet_protocols(self, ctx):
        return [ProtocolSpec(protocol_name="bad-echo", version=1, handler=Echo())]
""",
    "second_echo": """
class Plugin:
    @hookimpl
    def sdnet_protocols(self, ctx):
        return [ProtocolSpec(protocol_name="bad-echo", version=1, handler=Echo())]
""",
    "hangs": """
class Plugin:
    @hookimpl
    def sdnet_services(self, ctx):
        return [ServiceSpec(name="main", run=self.run)]
    async def run(self, *, task_status):
        await anyio.sleep_forever()
""",
    "leaks": """
class Plugin:
    @hookimpl
    def sdnet_services(self, ctx):
        return [ServiceSpec(name="main", run=self.run)]
    async def run(self, *, task_status):
        async with anyio.create_task_group() as tasks:
            task_status.started()
            for _ in range(2000):
                tasks.start_soon(anyio.sleep_forever)
""",
    "floods": """
class Plugin:
    @hookimpl
    def sdnet_services(self, ctx):
        self.ctx = ctx
        return [ServiceSpec(name="main", run=self.run)]
    async def run(self, *, task_status):
        task_status.started()
        while True:
            for _ in range(1000):
                self.ctx.publish(PluginFailed(plugin="x", reason="y"))
            await anyio.sleep(0)
""",
    "raises": """
class Plugin:
    @hookimpl
    def sdnet_event(self, ctx, event):
        raise ValueError("no good")
    @hookimpl
    def sdnet_services(self, ctx):
        self.ctx = ctx
        return [ServiceSpec(name="main", run=self.run)]
    async def run(self, *, task_status):
        task_status.started()
        while True:
            self.ctx.publish(PluginFailed(plugin="raises", reason="tick"))
            await anyio.sleep(0.1)
""",
    "from_the_future": "raise AssertionError('it must not be imported')",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the plugins as installed distributions."""
    folder = tmp_path_factory.mktemp("bad")
    for name, source in PLUGINS.items():
        (folder / f"bad_{name}.py").write_text(HEADER + source)
        info = folder / f"bad_{name}-2.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bad-{name.replace('_', '-')}\nVersion: 2.1\n")
        group = "sdnet.plugins.v2" if name == "from_the_future" else "sdnet.plugins.v1"
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = bad_{name}:Plugin\n")
    return folder


@pytest.fixture(scope="module")
def nodes(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    environment = {
        "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "SDNET_PLUGINS_MAX_TASKS": "1000",
    }
    with paired_daemons(tmp_path_factory.mktemp("homes"), environment=environment) as (alice, bob):
        yield alice, bob


def listed(node: Any) -> dict[str, dict[str, Any]]:
    return {record["name"]: record for record in node.json("plugins")}


def wait_for(node: Any, right: Callable[[dict[str, dict[str, Any]]], bool]) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + 90
    while not right(found := listed(node)):
        assert time.monotonic() < deadline, found
    return found


def test_each_is_listed_with_its_state_and_reason_and_the_rest_works(nodes: tuple[Any, Any]) -> None:
    alice, bob = nodes
    found = wait_for(alice, lambda all_: {all_[n]["state"] for n in ("leaks", "floods", "raises")} == {"quarantined"})
    for name, state, reason in (
        ("imports", "failed", "RuntimeError: out of order"),
        ("async_hook", "failed", "is an async function"),
        ("first_echo", "loaded", ""),
        ("second_echo", "failed", "/sdnet/bad-echo/1 is served by plugin first_echo (bad-first-echo) already"),
        ("hangs", "failed", "was not ready within 10 s"),
        ("leaks", "quarantined", "it leaks them"),
        ("floods", "quarantined", "published more than"),
        ("raises", "quarantined", "sdnet_event raised ValueError('no good')"),
        ("from_the_future", "incompatible", "needs sdnet.plugins.v2; this sdnet has sdnet.plugins.v1"),
    ):
        assert found[name]["state"] == state, found[name]
        assert reason in found[name]["reason"], found[name]
    assert "bad-second-echo" in found["second_echo"]["reason"]
    assert alice.json("ping", "bob", "--count", "1")
    assert {d["name"] for d in bob.json("devices") if d["connected"]} == {"alice"}


def test_one_in_quarantine_comes_back_by_hand_and_goes_again(nodes: tuple[Any, Any]) -> None:
    alice, _ = nodes
    wait_for(alice, lambda all_: all_["floods"]["state"] == "quarantined")
    done = alice.run("plugins", "enable", "floods", check=False)
    assert done.returncode == 0 or "published more than" in done.stderr
    wait_for(alice, lambda all_: all_["floods"]["state"] == "quarantined")
    assert alice.json("plugins", "disable", "floods")["state"] == "disabled"
    assert listed(alice)["floods"]["state"] == "disabled"
