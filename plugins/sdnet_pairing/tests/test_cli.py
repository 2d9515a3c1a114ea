"""``sdnet pair``, as far as it goes without a node. The rest is tested with daemons as processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdnet_core.cli.kit import Cli
from sdnet_core.errors import NotRunningError
from sdnet_pairing import CodeError
from sdnet_pairing.cli import pair

WORDS = "legal winner thank year wave sausage worth useful legal winner thank yellow".split()


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("SDNET_HOME", str(tmp_path))
    return CliRunner()


@pytest.mark.parametrize("name", sorted(pair.commands))
def test_every_command_explains_itself(runner: CliRunner, name: str) -> None:
    result = runner.invoke(pair, [name, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output


def test_help_names_the_private_way_to_give_the_code(runner: CliRunner) -> None:
    output = runner.invoke(pair, ["join", "--help"]).output
    assert "standard input" in output
    assert "others" in output


@pytest.mark.parametrize(
    ("arguments", "typed"), [([*WORDS[:11], "yelow"], ""), (["-"], " ".join(WORDS).replace("year", "yaer"))]
)
def test_a_misspelt_code_never_reaches_the_node(runner: CliRunner, arguments: list[str], typed: str) -> None:
    result = runner.invoke(pair, ["join", *arguments], obj=Cli(), input=typed)
    assert isinstance(result.exception, CodeError)
    assert result.exception.exit_code == 2
    assert "did you mean “year”" in str(result.exception) or "did you mean “yellow”" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [["generate"], ["join", *WORDS], ["status"], ["pending"], ["accept", "1"], ["reject", "1"], ["cancel", "1"]],
)
def test_without_a_node_that_is_what_is_said(runner: CliRunner, arguments: list[str]) -> None:
    result = runner.invoke(pair, arguments, obj=Cli())
    assert isinstance(result.exception, NotRunningError)
    assert "sdnet start" in str(result.exception)


def test_no_words_and_no_terminal_is_a_usage_error(runner: CliRunner) -> None:
    result = runner.invoke(pair, ["join"], obj=Cli())
    assert result.exit_code == 2
    assert "standard input" in result.output


def test_the_commands_load_nothing_heavy() -> None:
    heavy = ("libp2p", "trio", "cryptography", "mnemonic", "rich", "starlette")
    program = f"import sys, sdnet_pairing.cli; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
