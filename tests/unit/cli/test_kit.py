"""What plugins' commands are made with."""

from __future__ import annotations

import io
import json
import uuid

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from sdnet_core.cli.kit import Cli, json_option, pass_cli
from sdnet_core.cli.progress import BarProgress, LineProgress


def test_a_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": "日本\x1b[2J", "state": True, "tags": ["a", "b"], "extra": 1},
        {"name": "[bold]x[/]", "state": None},
        {"name": "two\nlines", "state": "", "tags": []},
    ]
    Cli().table(rows, [("name", "NAME"), ("state", "STATE"), ("tags", "TAGS")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME        STATE  TAGS",
        "日本�[2J    yes    a, b",
        "[bold]x[/]  -      -",
        "two lines   -      -",
    ]


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cli, "interactive", True)
    cli = Cli()
    screen = io.StringIO()
    cli.__dict__["console"] = Console(file=screen, force_terminal=True, width=40, color_system=None)
    cli.table([{"name": "[red]x\x1b]0;title\x07", "id": 5}], [("name", "NAME"), ("id", "ID")])
    assert "[red]x�]0;title�" in screen.getvalue()
    assert "\x1b]" not in screen.getvalue()


def test_an_empty_table_says_so_beside_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    Cli().table([], [("name", "NAME")], empty="No device is paired yet.")
    assert capsys.readouterr() == ("", "No device is paired yet.\n")


def test_json_is_plain_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    Cli().print_json({"name": "é\x1b[0m", "id": uuid.UUID(int=1)}, compact=True)
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    assert "\x1b" not in out
    assert json.loads(out) == {"name": "é\x1b[0m", "id": str(uuid.UUID(int=1))}


def test_printing_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli()
    cli.print("a\x1b[2Jb\nc")
    cli.note("d\x07")
    assert capsys.readouterr() == ("a�[2Jb\nc\n", "d�\n")


def test_a_command_gets_the_cli_and_json() -> None:
    @click.command()
    @json_option
    @pass_cli
    def show(cli: Cli, as_json: bool) -> None:
        assert cli.as_json is as_json
        cli.print_json({"json": as_json})

    runner = CliRunner()
    assert json.loads(runner.invoke(show, ["--json"], obj=Cli()).output) == {"json": True}
    assert json.loads(runner.invoke(show, [], obj=Cli()).output) == {"json": False}


def test_progress_lines_come_every_few_seconds() -> None:
    lines: list[str] = []
    now = 100.0
    with LineProgress(lines.append, "holiday.jpg", monotonic=lambda: now) as progress:
        for step in range(11):
            now = 100.0 + step
            progress.update(step << 20, 20 << 20)
    assert lines == [
        "holiday.jpg  0 B of 20.0 MiB (0 %)",
        "holiday.jpg  3.0 MiB of 20.0 MiB (15 %)  1.0 MiB/s  17 s left",
        "holiday.jpg  6.0 MiB of 20.0 MiB (30 %)  1.0 MiB/s  14 s left",
        "holiday.jpg  9.0 MiB of 20.0 MiB (45 %)  1.0 MiB/s  11 s left",
        "holiday.jpg  10.0 MiB of 20.0 MiB (50 %)  1.0 MiB/s  10 s left",
    ]


def test_progress_without_a_total_or_an_update() -> None:
    lines: list[str] = []
    with LineProgress(lines.append, "a", monotonic=lambda: 0.0):
        pass
    assert lines == []
    with LineProgress(lines.append, "a", monotonic=lambda: 0.0) as progress:
        progress.update(5)
        progress.update(6, text="b")
    assert lines == ["a  5 B", "b  6 B"]


def test_the_bar_on_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with BarProgress(console, "holi\x1b[2Jday [red]", 100) as progress:
        progress.update(50)
        progress.update(100, 100, "done\x07")
    assert "done�" in screen.getvalue()
    assert "100/100" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()


def test_progress_in_a_pipe_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Cli().progress("file", 10) as progress:
        progress.update(10, 10)
    assert capsys.readouterr() == ("", "file  10 B of 10 B (100 %)\n")
