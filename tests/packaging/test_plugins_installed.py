"""Plugins come and go with their distributions, and a broken one harms nobody else."""

from __future__ import annotations

from collections.abc import Callable
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


def test_the_core_alone_works_and_has_no_plugins(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment("sdnet-core")
    assert environment.plugins() == {}
    assert environment.sdnet("--help").returncode == 0
    version = environment.sdnet("version")
    assert version.returncode == 0
    assert VERSION in version.stdout


def test_plugins_appear_when_installed_and_vanish_when_removed(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment("sdnet-pairing")
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


def test_a_running_node_tells_what_its_plugins_serve(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment("sdnet")
    quiet = {"SDNET_DISCOVERY_MDNS": "false", "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0"}
    started = environment.sdnet("start", **quiet)
    try:
        assert started.returncode == 0, started.stderr
        records = environment.plugins()
    finally:
        stopped = environment.sdnet("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert {name: record["state"] for name, record in records.items()} == dict.fromkeys(OURS, "loaded")
    assert [name for name, record in records.items() if not record["protocols"]] == []
    assert records["pairing"]["capabilities"], "pairing talks to strangers and adds devices; both are declared"


def test_a_disabled_plugin_is_listed_and_not_used(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment("sdnet")
    records = environment.plugins(SDNET_DISABLE_PLUGINS="spacedrop")
    states = {name: record["state"] for name, record in records.items()}
    assert states == dict.fromkeys(OURS, "loaded") | {"spacedrop": "disabled"}
    assert environment.sdnet("drop", "--help", SDNET_DISABLE_PLUGINS="spacedrop").returncode == 2
    assert environment.sdnet("pair", "--help", SDNET_DISABLE_PLUGINS="spacedrop").returncode == 0


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


def test_a_plugin_that_cannot_be_imported_is_listed_as_failed(
    make_environment: Callable[..., Environment], broken_wheel: Path
) -> None:
    environment = make_environment("sdnet")
    environment.install(str(broken_wheel))

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


def test_importing_the_core_and_asking_the_command_line_stay_light(
    make_environment: Callable[..., Environment],
) -> None:
    environment = make_environment("sdnet")
    assert "sdnet_core" in environment.modules_after("import sdnet_core")
    assert environment.modules_after("import sdnet_core") & HEAVY == set()
    for arguments in (["--help"], ["devices", "--json"], ["plugins", "--json"], ["drop", "send", "--help"]):
        run_main = f"import sys; sys.argv = ['sdnet', *{arguments!r}]; from sdnet_core.cli.main import main; main()"
        modules = environment.modules_after(run_main)
        assert "click" in modules
        assert modules & HEAVY == set(), arguments
