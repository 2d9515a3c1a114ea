"""The README and the docs tell the truth: links lead somewhere, commands exist, examples run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from sdnet_core.cli.main import sdnet
from sdnet_core.testing import linked_nodes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")])


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{target} is not there"


@pytest.mark.anyio
async def test_the_plugin_in_the_readme_works_as_its_test_says() -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, names)
    await names["test_echo"]()
    async with linked_nodes(1, plugins=[names["EchoPlugin"]]) as (node,):
        assert node.plugin_records()[0].protocols == ("/sdnet/echo/1",)


def commands_in_the_readme() -> list[str]:
    """Every ``sdnet`` command that a console block shows."""
    return [line.split("$ ", 1)[1] for block in blocks("console") for line in block.splitlines() if "$ sdnet" in line]


@pytest.mark.parametrize("line", commands_in_the_readme())
def test_the_commands_in_the_readme_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = sdnet
    context = click.Context(command, info_name="sdnet")
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words.pop(0))
        assert found is not None, f"there is no command {line!r}"
        command, context = found, click.Context(found, info_name=found.name, parent=context)
    command.make_parser(context).parse_args(list(words))
