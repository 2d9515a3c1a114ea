"""Plugins come and go with their distributions, and a broken one harms nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.packaging.conftest import Environment

OURS = {
    "file_transfer": "sdnet-file-transfer",
    "messaging": "sdnet-messaging",
    "pairing": "sdnet-pairing",
    "spacedrop": "sdnet-spacedrop",
    "sync": "sdnet-sync",
}
VERSION = "0.1.0"
HEAVY = {"libp2p", "trio", "grpc", "aioquic"}


@pytest.fixture(scope="module")
def whole(make_environment: Callable[..., Environment]) -> Environment:
    """An environment with all distributions, which the tests of this module leave as it is."""
    return make_environment("sdnet")


def test_plugins_appear_when_installed_and_vanish_when_removed(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment("sdnet-core")
    assert environment.plugins() == {}
    assert environment.sdnet("--help").returncode == 0
    version = environment.sdnet("version")
    assert version.returncode == 0
    assert VERSION in version.stdout

    environment.install("sdnet-pairing")
    assert environment.plugins().keys() == {"pairing"}

    environment.install("sdnet")
    records = environment.plugins()
    assert {name: record["distribution"] for name, record in records.items()} == OURS
    assert {record["state"] for record in records.values()} == {"loaded"}, records
    assert {record["version"] for record in records.values()} == {VERSION}
    assert {record["reason"] for record in records.values()} == {""}

    environment.uninstall("sdnet-spacedrop")
    remaining = environment.plugins()
    assert remaining.keys() == OURS.keys() - {"spacedrop"}
    assert {record["state"] for record in remaining.values()} == {"loaded"}
    assert environment.sdnet("drop", "--help").returncode == 2
    assert environment.sdnet("pair", "--help").returncode == 0


@contextmanager
def running(environment: Environment) -> Iterator[None]:
    """A node of an environment, stopped at the end."""
    quiet = {"SDNET_DISCOVERY_MDNS": "false", "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0"}
    started = environment.sdnet("start", **quiet)
    try:
        assert started.returncode == 0, started.stderr
        yield
    finally:
        stopped = environment.sdnet("stop")
    assert stopped.returncode == 0, stopped.stderr


def said(environment: Environment, *arguments: str) -> str:
    """What a command prints that must succeed."""
    done = environment.sdnet(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stored(environment: Environment) -> dict[str, tuple[bool, int]]:
    """Of which plugins there are data: whether each is installed, and how many bytes."""
    parts = json.loads(said(environment, "data", "list", "--json"))["parts"]
    return {part["name"]: (part["installed"], part["bytes"]) for part in parts}


def test_a_plugin_that_is_uninstalled_leaves_the_others_and_its_data(whole: Environment) -> None:
    with running(whole):
        records = whole.plugins()
        said(whole, "sync", "create", "Recipes")
        said(whole, "sync", "put", "Recipes", "recipe", "pancakes", "eggs=3")
        fingerprint = json.loads(said(whole, "status", "--json"))["fingerprint"]
    assert {name: record["state"] for name, record in records.items()} == dict.fromkeys(OURS, "loaded")
    assert [name for name, record in records.items() if not record["protocols"]] == []
    assert records["pairing"]["capabilities"], "pairing talks to strangers and adds devices; both are declared"

    whole.uninstall("sdnet-sync")
    try:
        with running(whole):
            records = whole.plugins()
            status = json.loads(said(whole, "status", "--json"))
            assert said(whole, "msg", "inbox", "--json").strip() == "[]"
            assert whole.sdnet("sync", "list").returncode == 2
            installed, size = stored(whole)["sync"]
            refused = whole.sdnet("data", "purge", "sync", "--yes")
        assert records.keys() == OURS.keys() - {"sync"}
        assert {record["state"] for record in records.values()} == {"loaded"}
        assert (status["fingerprint"], status["plugins"]["failed"]) == (fingerprint, [])
        assert not installed
        assert size > 4096, "the library is still there"
        assert refused.returncode == 1, "not while the node runs"
    finally:
        whole.install("sdnet-sync")

    with running(whole):
        pancakes = json.loads(said(whole, "sync", "get", "Recipes", "recipe", "pancakes", "--json"))
    assert pancakes["fields"] == {"eggs": 3}, "what it had is there again"
    said(whole, "data", "purge", "sync", "--yes")
    assert "sync" not in stored(whole)
    with running(whole):
        assert json.loads(said(whole, "sync", "list", "--json"))["libraries"] == []
        assert json.loads(said(whole, "status", "--json"))["fingerprint"] == fingerprint


def test_a_disabled_plugin_is_listed_and_not_used(whole: Environment) -> None:
    records = whole.plugins(SDNET_DISABLE_PLUGINS="spacedrop")
    states = {name: record["state"] for name, record in records.items()}
    assert states == dict.fromkeys(OURS, "loaded") | {"spacedrop": "disabled"}
    assert whole.sdnet("drop", "--help", SDNET_DISABLE_PLUGINS="spacedrop").returncode == 2
    assert whole.sdnet("pair", "--help", SDNET_DISABLE_PLUGINS="spacedrop").returncode == 0


@pytest.fixture
def with_broken(whole: Environment, broken_wheel: Path) -> Iterator[Environment]:
    """The environment with a plugin that raises when it is imported."""
    whole.install(str(broken_wheel))
    yield whole
    whole.uninstall("sdnet-broken")


@pytest.fixture
def broken_wheel(tmp_path: Path, wheel_of: Callable[[Path, Path], Path]) -> Path:
    """Build a third party's plugin that raises when it is imported."""
    source = tmp_path / "broken"
    package = source / "src" / "sdnet_broken"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('raise RuntimeError("the flux capacitor is missing")\n')
    (source / "pyproject.toml").write_text(
        "[build-system]\n"
        'requires = ["hatchling"]\n'
        'build-backend = "hatchling.build"\n'
        "[project]\n"
        'name = "sdnet-broken"\n'
        'version = "7.8.9"\n'
        '[project.entry-points."sdnet.plugins.v1"]\n'
        'broken = "sdnet_broken.plugin:BrokenPlugin"\n'
    )
    return wheel_of(source, tmp_path / "broken-wheel")


def test_a_plugin_that_cannot_be_imported_is_listed_as_failed(with_broken: Environment) -> None:
    environment = with_broken
    records = environment.plugins()
    broken = records.pop("broken")
    assert (broken["state"], broken["distribution"], broken["version"]) == ("failed", "sdnet-broken", "7.8.9")
    assert "the flux capacitor is missing" in broken["reason"]
    assert {name: record["state"] for name, record in records.items()} == dict.fromkeys(OURS, "loaded")

    listing = environment.sdnet("plugins")
    assert listing.returncode == 0
    assert "failed" in listing.stdout
    assert environment.sdnet("pair", "--help").returncode == 0
    status = environment.sdnet("status")
    assert status.returncode == 3, "no daemon runs, and the broken plugin changes nothing about that"


def test_importing_the_core_and_asking_the_command_line_stay_light(whole: Environment) -> None:
    assert "sdnet_core" in whole.modules_after("import sdnet_core")
    assert whole.modules_after("import sdnet_core") & HEAVY == set()
    for arguments in (["--help"], ["devices", "--json"], ["plugins", "--json"], ["drop", "send", "--help"]):
        run_main = f"import sys; sys.argv = ['sdnet', *{arguments!r}]; from sdnet_core.cli.main import main; main()"
        modules = whole.modules_after(run_main)
        assert "click" in modules
        assert modules & HEAVY == set(), arguments
