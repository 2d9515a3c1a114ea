"""``sdnet config bootstrap`` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdnet_core.cli.main import main
from sdnet_core.config import load_config

ADDRESS = "/dns4/example.org/tcp/4001/p2p/12D3KooW9pP4Seg3kZYhySpuVjn1RPdQBsUFZKiFxGMGQN5MeL6A"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDNET_HOME", str(tmp_path))


def test_add_list_remove(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "bootstrap", "add", ADDRESS]) == 0
    assert main(["config", "bootstrap", "add", ADDRESS]) == 0
    assert load_config().discovery.bootstrap == (ADDRESS,)
    capsys.readouterr()
    assert main(["config", "bootstrap", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [ADDRESS]
    assert main(["config", "bootstrap", "remove", ADDRESS]) == 0
    assert load_config().discovery.bootstrap == ()
    assert main(["config", "bootstrap", "list"]) == 0
    assert "local network only" in capsys.readouterr().err


def test_what_is_no_meeting_point_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "bootstrap", "add", "example.org:4001"]) != 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert load_config().discovery.bootstrap == ()


def test_removing_what_is_not_there_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "bootstrap", "remove", ADDRESS]) == 1
    assert "is not among" in capsys.readouterr().err
