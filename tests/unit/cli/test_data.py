"""``sdnet data``: what is stored is listed, and removed only when that is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sdnet_core.cli.main import sdnet
from sdnet_core.errors import ConflictError, NetworkingError
from sdnet_core.storage import DirectoryLock


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDNET_HOME", str(tmp_path))
    data = tmp_path / "default" / "data"
    for name in ("plugins/weather", "plugins/clipboard", "network/plugins/weather"):
        (data / name).mkdir(parents=True)
        (data / name / "file").write_bytes(bytes(1000))
    (data / "vault").write_bytes(bytes(100))
    return data


def run(*words: str, typed: str = "") -> Result:
    return CliRunner().invoke(sdnet, ["data", *words], input=typed)


def test_what_is_stored_is_listed_by_owner() -> None:
    found = json.loads(run("list", "--json").output)
    assert found["bytes"] == 3100
    assert {p["name"]: p["bytes"] for p in found["parts"]} == {"(core)": 100, "clipboard": 1000, "weather": 2000}


def test_a_plugins_data_go_and_nothing_else(data: Path) -> None:
    assert run("purge", "weather", typed="n\n").exit_code == 1
    assert (data / "plugins" / "weather" / "file").exists()
    assert run("purge", "weather", typed="y\n").output.endswith("Removed 2.0 KiB.\n")
    assert sorted(p.name for p in (data / "plugins").iterdir()) == ["clipboard"]
    assert not (data / "network" / "plugins" / "weather").exists()
    assert (data / "vault").exists()


def test_all_means_all(data: Path) -> None:
    assert run("purge", "--all", "--yes").exit_code == 0
    assert [p.name for p in data.iterdir()] == ["lock"]


def test_nothing_goes_while_a_node_runs(data: Path) -> None:
    with DirectoryLock(data):
        result = run("purge", "--all")  # Refused at once, not after a question whose answer changes nothing.
    assert isinstance(result.exception, ConflictError)
    assert "sdnet stop" in result.exception.detail
    assert (data / "vault").exists()


def test_the_folder_of_a_plugin_that_nobody_has_is_not_told(data: Path) -> None:
    assert run("path").output == f"{data}\n"
    # One that is gone and has left data, and one that is installed and has none yet.
    assert run("path", "weather").output == f"{data / 'plugins' / 'weather'}\n"
    assert run("path", "messaging").output == f"{data / 'plugins' / 'messaging'}\n"
    result = run("path", "wether")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No plugin 'wether' is installed, and there are no data of one. Did you mean 'weather'" in result.output
    assert "There are: clipboard, " in run("path", "nope").output


@pytest.mark.parametrize("words", [("purge",), ("purge", "weather", "--all"), ("purge", "nothing"), ("path", "../x")])
def test_wrong_wishes_are_refused(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 2 or isinstance(result.exception, NetworkingError)
