"""``sdnet config`` as a person uses it, without a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sdnet_core.cli.main import main, sdnet


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDNET_HOME", str(tmp_path))
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)


def run(*words: str, typed: str = "") -> Result:
    return CliRunner().invoke(sdnet, ["config", *words], input=typed, catch_exceptions=True)


def test_set_get_list_unset() -> None:
    assert run("set", "connections.max_connections", "200").output == "connections.max_connections = 200\n"
    assert run("get", "connections.max_connections").output == "200\n"
    changed = json.loads(run("list", "--changed", "--json").output)
    assert [(s["key"], s["value"], s["origin"]) for s in changed] == [("connections.max_connections", 200, "file")]
    assert run("unset", "connections.max_connections").output == "connections.max_connections has its default again.\n"
    assert json.loads(run("list", "--changed", "--json").output) == []


def test_every_setting_is_listed_with_its_meaning() -> None:
    found = json.loads(run("list", "--json").output)
    assert {"node.name", "discovery.mdns", "log.level", "plugins.disable"} <= {s["key"] for s in found}
    assert all(s["meaning"] for s in found if s["key"].count(".") == 1)


def test_a_wrong_value_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "set", "connections.max_connections", "many"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "sdnet: connections.max_connections: a whole number is needed, not a text."
    ]


def test_an_edit_that_is_wrong_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("set", "node.name", "before")
    monkeypatch.setenv("EDITOR", "sed -i s/name/nmae/")
    result = run("edit", typed="n\n")
    assert "nmae" in result.output
    assert run("get", "node.name").output == "before\n"
    monkeypatch.setenv("EDITOR", "sed -i s/before/after/")
    assert run("edit").exit_code == 0
    assert run("get", "node.name").output == "after\n"


def test_a_file_that_is_wrong_can_be_mended_with_the_command_itself(tmp_path: Path) -> None:
    file = tmp_path / "default" / "config.toml"
    file.parent.mkdir()
    file.write_text('[node]\nnmae = "x"\n')
    assert run("check").exception is not None
    assert run("unset", "node.nmae").exit_code == 0
    assert run("check").output == f"{file} is right.\n"
