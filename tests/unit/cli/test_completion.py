"""What shells complete, and the manual page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdnet_core.cli.main import sdnet

COMMAND = [sys.executable, "-m", "sdnet_core.cli"]


def completed(words: str, home: Path) -> list[str]:
    environ = {
        **os.environ,
        "SDNET_HOME": str(home),
        "_SDNET_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(COMMAND, capture_output=True, text=True, env=environ, timeout=60, check=False)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_commands_and_options_are_completed(tmp_path: Path) -> None:
    assert completed("sdnet dev", tmp_path) == ["devices"]
    assert completed("sdnet config g", tmp_path) == ["get"]
    assert "--foreground" in completed("sdnet start --", tmp_path)


def test_names_of_devices_without_a_node_are_none_and_nothing_is_said(tmp_path: Path) -> None:
    assert completed("sdnet ping b", tmp_path) == []


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", ".local/share/bash-completion/completions/sdnet"),
        ("zsh", ".local/share/zsh/site-functions/_sdnet"),
        ("fish", ".config/fish/completions/sdnet.fish"),
    ],
)
def test_scripts_are_installed_where_the_shell_looks(
    shell: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(sdnet, ["completion", shell, "--install"])
    assert done.exit_code == 0, done.output
    script = (tmp_path / place).read_text()
    assert "_SDNET_COMPLETE" in script
    if shutil.which(shell):
        check = subprocess.run([shell, "-n", str(tmp_path / place)], capture_output=True, text=True, check=False)
        assert check.stderr == ""


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff, which reads manual pages, is not installed")
def test_the_manual_page_is_right_and_has_every_command() -> None:
    done = CliRunner().invoke(sdnet, ["man"])
    read = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"], input=done.output, capture_output=True, text=True, timeout=60, check=False
    )
    assert (read.returncode, read.stderr) == (0, "")
    for name in sdnet.list_commands(sdnet.make_context("sdnet", ["status"], resilient_parsing=True)):
        assert f".SS sdnet {name}".replace("-", "\\-") in done.output
