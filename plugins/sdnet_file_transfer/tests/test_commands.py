"""The command line: rates and places as people write them, and commands that are found without loading plugins."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from sdnet_core.cli.kit import Cli
from sdnet_file_transfer.cli import begin, parse_rate


@pytest.mark.parametrize("disabled", [False, True])
def test_a_declared_command_of_a_plugin_that_is_disabled_is_none(disabled: bool) -> None:
    environment = {**os.environ, "SDNET_DISABLE_PLUGINS": "file_transfer" if disabled else ""}
    command = [sys.executable, "-m", "sdnet_core.cli", "send", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (2 if disabled else 0)
    assert ("no command 'send'" in done.stderr) is disabled


def test_who_interrupts_before_the_node_has_answered_is_told_that_it_may_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sdnet_core.daemon.client.ApiClient.stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        begin(Cli("nobody"), "/x", {}, detach=False, as_json=False)
    assert "sdnet transfers shows it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "rate"),
    [("500K", 500 << 10), ("2M", 2 << 20), ("1.5MiB/s", 3 << 19), ("1g", 1 << 30), ("4096", 4096), ("off", 0)],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(click.Context(click.Command("x")), click.Option(["--up"]), text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1M", "0", "1T", "nan", "inf", "M"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_rate(click.Context(click.Command("x")), click.Option(["--up"]), text)
