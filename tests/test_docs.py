"""The README and the docs tell the truth: links lead somewhere, commands exist, examples run."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from sdnet_core.cli.main import sdnet
from sdnet_core.testing import linked_nodes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")])


DOCS = ROOT / "docs"


def blocks(language: str, text: str = README) -> list[str]:
    """A page's code blocks in a language; the README's by default."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


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


def commands_shown() -> list[str]:
    """Every ``sdnet`` command that a console block of the README, the tutorial or a how-to shows."""
    texts = [README, *(p.read_text(encoding="utf-8") for p in [DOCS / "tutorial.md", *DOCS.glob("how-to/*.md")])]
    lines = [line for text in texts for block in blocks("console", text) for line in block.splitlines()]
    return sorted({line[line.index("sdnet ") :] for line in lines if "$ " in line and "sdnet " in line})


@pytest.mark.parametrize("line", commands_shown())
def test_the_commands_shown_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = sdnet
    context = click.Context(command, info_name="sdnet")
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words.pop(0))
        assert found is not None, f"there is no command {line!r}"
        command, context = found, click.Context(found, info_name=found.name, parent=context)
    command.make_parser(context).parse_args(list(words))


@pytest.mark.anyio
async def test_the_how_to_for_plugins_works() -> None:
    names: dict[str, Any] = {}
    for block in blocks("python", (DOCS / "how-to" / "write-a-plugin.md").read_text(encoding="utf-8")):
        exec(block, names)
    tests = [name for name in names if name.startswith("test_")]
    assert tests == ["test_echo", "test_hostile_peers"]
    for name in tests:
        await names[name]()


@pytest.mark.parametrize("program", blocks("python", (DOCS / "how-to" / "embed.md").read_text(encoding="utf-8")))
def test_the_programs_that_host_a_node_run(program: str, tmp_path: Path) -> None:
    quiet = {
        "SDNET_HOME": str(tmp_path),
        "SDNET_DISCOVERY_MDNS": "false",
        "SDNET_NODE_NAME": "host",
        "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0",
        "SDNET_PLUGINS": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "12D3Koo" in done.stdout or "/ip4/127.0.0.1/tcp/" in done.stdout


def generated_pages() -> dict[str, str]:
    """What `tools/reference.py` writes."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


@pytest.mark.parametrize(
    "name", ["commands.md", "configuration.md", "errors.md", "events.md", "hooks.md", "plugins.md", "../man/sdnet.1"]
)
def test_the_reference_is_in_step_with_the_code(name: str) -> None:
    written = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert written == generated_pages()[name], "run: python tools/reference.py"


def test_every_hook_setting_error_and_command_is_documented() -> None:
    from sdnet_core import config, errors, events, hookspecs
    from sdnet_core.cli.main import core_commands

    pages = generated_pages()
    hooks = {name for name in vars(hookspecs.SdnetSpecs) if name.startswith("sdnet_")}
    assert {name for name in hooks if f"## `{name}(" not in pages["hooks.md"]} == set()
    assert {name for name in core_commands() if f"## `sdnet {name}`" not in pages["commands.md"]} == set()
    shown = set(re.findall(r"^### `sdnet ([\w-]+)", pages["plugins.md"], re.MULTILINE))
    assert shown >= {"drop", "get", "ls", "msg", "notify", "pair", "send", "share", "sync", "transfers"}
    keys = {key for section in config.SECTIONS.values() for key in section.__struct_fields__}
    assert {key for key in keys if f"| `{key}` |" not in pages["configuration.md"]} == set()
    assert {name for name in errors.__all__ if f"| `{name}` |" not in pages["errors.md"]} == set()
    told = {name for name in events.__all__ if getattr(getattr(events, name), "kind", "event") != "event"}
    assert {name for name in told if f"| `{name}` |" not in pages["events.md"]} == set()


def test_the_tests_that_the_security_page_names_exist() -> None:
    named = re.findall(r"`(tests/[^`]+)`", (DOCS / "security.md").read_text(encoding="utf-8"))
    assert named
    assert [place for place in named if not (ROOT / place).exists()] == []


def test_the_architecture_page_names_every_folder() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    core = ROOT / "src" / "sdnet_core"
    folders = {package.parent.name for package in core.rglob("*/__init__.py") if "@" not in str(package)}
    named = set(re.findall(r"^ +(\w+)/ ", page, re.MULTILINE))
    assert folders - named == set()
    assert {name for name in named if not any(core.rglob(name))} == set()


def test_the_index_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", (DOCS / "index.md").read_text(encoding="utf-8")))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"index.md"}
    assert pages - linked == set()


def test_every_page_is_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {page for page in pages if not re.search(rf"- {re.escape(page)}$", site, re.MULTILINE)} == set()


def test_the_pytest_plugin_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"sdnet": "sdnet_core.testing.pytest_plugin"}
