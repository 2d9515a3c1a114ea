"""`sdnet plugin new` and `sdnet plugin check`: what is generated is a good citizen, and bad ones are found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdnet_core.cli.main import main
from sdnet_core.cli.plugin_new import render_plugin
from sdnet_core.errors import ConflictError, InvalidRequestError

ROOT = Path(__file__).parent.parent.parent.parent
EXAMPLES = ROOT / "examples"

PYPROJECT = """
[project]
name = "sdnet-{name}"
version = "1.2.3"
dependencies = ["sdnet-core>=0.1,<0.2"]
[project.entry-points."sdnet.plugins.v1"]
{name} = "sdnet_{name}.plugin:Plugin"
"""


def check(target: object) -> dict[str, Any]:
    """Run `sdnet plugin check` in a process of its own, as it imports what it checks."""
    done = subprocess.run(
        [sys.executable, "-m", "sdnet_core.cli", "plugin", "check", str(target), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return report


def failures(report: dict[str, Any]) -> dict[str, str]:
    """The checks that failed, with what they say."""
    return {c["name"]: "\n".join(c["details"]) for c in report["checks"] if c["state"] == "failed"}


def write(folder: Path, name: str, source: str) -> Path:
    """Write a plugin's distribution."""
    package = folder / "src" / f"sdnet_{name}"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name))
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(source)
    return folder


def test_the_echo_example_is_what_the_generator_writes() -> None:
    folder = EXAMPLES / "sdnet_echo"
    there = {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", ".pytest_cache", ".ruff_cache", ".venv"} & set(path.parts)
    }
    written = {str(path): text for path, text in render_plugin("echo").items()}
    assert there == written


@pytest.mark.parametrize("example", ["sdnet_echo", "sdnet_clipboard"])
def test_the_examples_are_good_citizens(example: str) -> None:
    report = check(EXAMPLES / example)
    assert failures(report) == {}
    assert {c["state"] for c in report["checks"]} == {"ok"}, report


def test_a_new_plugin_is_a_good_citizen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "new", "weather_station", "--dir", str(tmp_path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["folder"] == str(tmp_path / "sdnet-weather-station")
    assert "src/sdnet_weather_station/plugin.py" in made["files"]
    report = check(made["folder"])
    assert failures(report) == {}
    assert (report["plugin"], report["distribution"]) == ("weather_station", "sdnet-weather-station")
    (life,) = [c["details"] for c in report["checks"] if c["name"] == "it starts and stops with a node"]
    assert life == ["/sdnet/weather-station/1", "POST /v1/weather-station/requests"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sdnet-weather").mkdir()
    (tmp_path / "sdnet-weather" / "mine.txt").write_text("mine")
    assert main(["plugin", "new", "weather", "--dir", str(tmp_path)]) == ConflictError.exit_code
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "sdnet-weather").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["Weather", "9lives", "a__b", "x" * 33, "status", "session", "class", "../x", ""])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be a plugin's name"):
        render_plugin(name)


@pytest.mark.parametrize(
    ("name", "source", "failed", "words"),
    [
        (
            "heavy",
            "import trio\nfrom sdnet_core import hookimpl\nclass Plugin:\n    @hookimpl\n"
            "    def sdnet_commands(self):\n        return []\n",
            "importing it is cheap",
            "imports trio",
        ),
        (
            "asynchronous",
            "from sdnet_core import hookimpl\nclass Plugin:\n    @hookimpl\n"
            "    async def sdnet_protocols(self, ctx):\n        return []\n",
            "its hooks are valid",
            "sdnet_protocols is an async function",
        ),
        (
            "misspelt",
            "from sdnet_core import hookimpl\nclass Plugin:\n    @hookimpl\n"
            "    def sdnet_protocol(self, ctx):\n        return []\n",
            "its hooks are valid",
            "sdnet_protocol is no hook",
        ),
        ("broken", "raise RuntimeError('no flux')\n", "the entry point loads", "no flux"),
        (
            "leaky",
            "import anyio\nfrom sdnet_core import hookimpl, ProtocolHandler, ProtocolSpec\n"
            "class Handler(ProtocolHandler):\n    protocol_name = 'leaky'\n"
            "    async def handle_stream(self, stream):\n        int((await stream.receive()).decode())\n"
            "class Plugin:\n    @hookimpl\n    def sdnet_protocols(self, ctx):\n"
            "        return [ProtocolSpec(protocol_name='leaky', version=1, handler=Handler())]\n",
            "its protocols withstand hostile peers",
            "handler of /sdnet/leaky/1 raised UnicodeDecodeError",
        ),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said(tmp_path: Path, name: str, source: str, failed: str, words: str) -> None:
    report = check(write(tmp_path, name, source))
    assert failed in failures(report)
    assert words in failures(report)[failed]


def test_private_names_are_a_warning(tmp_path: Path) -> None:
    source = (
        "from sdnet_core import hookimpl\nfrom sdnet_core.core import NetworkingCore\nclass Plugin:\n    @hookimpl\n"
        "    def sdnet_event(self, ctx, event):\n        assert NetworkingCore\n"
    )
    report = check(write(tmp_path, "nosy", source))
    (found,) = [c for c in report["checks"] if c["name"] == "it imports public names only"]
    assert found["state"] == "warning"
    assert found["details"] == ["plugin.py:2 imports sdnet_core.core, which is not public."]


def test_what_is_no_plugin_is_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "check", "nothing-of-that-name"]) == 1
    assert "No plugin 'nothing-of-that-name' is installed" in capsys.readouterr().err
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert main(["plugin", "check", str(tmp_path)]) == InvalidRequestError.exit_code
    assert "so it is no plugin" in capsys.readouterr().err
