"""The command as a process: exit codes, help, plugins' commands, and what it does not import."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from sdnet_core.cli import main
from sdnet_core.cli.kit import Cli

COMMAND = [sys.executable, "-m", "sdnet_core.cli"]
Sdnet = Callable[..., subprocess.CompletedProcess[str]]

GOOD = """
import click
from sdnet_core import hookimpl
from sdnet_core.cli.kit import Cli, pass_cli
from sdnet_core.errors import RefusedError

@click.command()
@click.argument("how")
@pass_cli
def greet(cli: Cli, how: str) -> None:
    '''Greet a device.'''
    if how == "refused":
        raise RefusedError("Bob said no.\\x1b[2J")
    if how == "broken":
        raise RuntimeError("a mistake")
    if how == "interrupted":
        raise KeyboardInterrupt
    if how == "grouped":
        raise ExceptionGroup("several", [RefusedError("One of them said no.")])
    if how == "long":
        for number in range(100_000):
            cli.print(f"line {number}")
    cli.print(f"greeting {how}")

@click.command()
def status() -> None:
    '''Try to take the place of a core command.'''

class GoodPlugin:
    @hookimpl
    def sdnet_commands(self):
        return [greet, status]
"""
BROKEN = {
    "raises": "raise RuntimeError('out of order')",
    "exits": "import sys; sys.exit(3)",
    "bad_syntax": "def (",
    "bad_commands": (
        "from sdnet_core import hookimpl\n"
        "class BadCommandsPlugin:\n"
        "    @hookimpl\n"
        "    def sdnet_commands(self):\n"
        "        import no_such_module_anywhere\n"
    ),
}


def install(site: Path, name: str, code: str, target: str) -> None:
    """Put a plugin's distribution into a folder as an installer would."""
    (site / f"{name}_module.py").write_text(code)
    info = site / f"sdnet_{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sdnet-{name.replace('_', '-')}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[sdnet.plugins.v1]\n{name} = {name}_module:{target}\n")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with a home of its own, a good plugin and several broken ones."""
    site = tmp_path / "site"
    site.mkdir()
    install(site, "good", GOOD, "GoodPlugin")
    for name, code in BROKEN.items():
        install(site, name, code, "BadCommandsPlugin")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SDNET_")}
    own = {"SDNET_HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(site)}
    return {**kept, **own}


@pytest.fixture
def sdnet(environ: dict[str, str]) -> Sdnet:
    """Runs ``sdnet``."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env={**environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return {record["name"]: record for record in json.loads(done.stdout)}


def test_help_lists_core_and_plugin_commands(sdnet: Sdnet) -> None:
    done = sdnet("--help")
    assert done.returncode == 0
    for command in ("start", "stop", "restart", "status", "plugins", "devices", "ping", "events", "version", "greet"):
        assert f"\n  {command} " in done.stdout
    assert "Greet a device." in done.stdout
    assert "Try to take the place" not in done.stdout
    assert "Examples:" in done.stdout
    assert done.stderr == ""
    for command in ("start", "stop", "restart", "status", "plugins", "devices", "ping", "events", "version"):
        done = sdnet(command, "-h")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"\n  sdnet {command}" in done.stdout.partition("Examples:")[2].replace("\n    ", "\n  ")


def test_usage_errors(sdnet: Sdnet) -> None:
    for arguments, hint in (
        (["devcies"], "Did you mean 'devices'?"),
        (["gret"], "Did you mean 'greet'?"),
        (["xyzzy"], "sdnet plugins"),
        (["ping"], "DEVICE"),
        (["ping", "x", "--count", "0"], "--count"),
        (["--instance", "../x", "status"], "instance name"),
        (["status", "--frobnicate"], "--frobnicate"),
    ):
        done = sdnet(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert hint in done.stderr
        assert "Traceback" not in done.stderr


def test_no_node_is_exit_code_3(sdnet: Sdnet) -> None:
    for arguments in (["status"], ["devices"], ["ping", "x"], ["events"], ["stop"]):
        done = sdnet(*arguments)
        assert (done.returncode, done.stdout) == (3, ""), arguments
        assert done.stderr == "sdnet: No node is running. Start it with: sdnet start\n"
    done = sdnet("--instance", "x", "devices", "--json")
    problem = json.loads(done.stderr)
    assert (problem["type"], problem["exit_code"]) == ("urn:sdnet:error:not-running", 3)
    assert "--instance x" in problem["detail"]


def test_a_plugins_command_and_its_errors(sdnet: Sdnet) -> None:
    done = sdnet("greet", "well")
    assert (done.returncode, done.stdout, done.stderr) == (0, "greeting well\n", "")
    done = sdnet("greet", "refused")
    assert (done.returncode, done.stdout, done.stderr) == (4, "", "sdnet: Bob said no.�[2J\n")
    done = sdnet("greet", "grouped")
    assert (done.returncode, done.stderr) == (4, "sdnet: One of them said no.\n")
    done = sdnet("greet", "broken")
    assert (done.returncode, done.stderr) == (1, "sdnet: RuntimeError: a mistake. SDNET_DEBUG=1 shows where.\n")
    done = sdnet("greet", "interrupted")
    assert (done.returncode, done.stderr.strip()) == (130, "")
    done = sdnet("greet", "broken", SDNET_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "a mistake" in done.stderr


def test_a_reader_that_leaves(environ: dict[str, str]) -> None:
    with subprocess.Popen(
        [*COMMAND, "greet", "long"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 141


def test_plugins_are_listed_however_broken(sdnet: Sdnet) -> None:
    done = sdnet("plugins", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    found = listed(done)
    assert found["good"]["state"] == "loaded"
    assert found["good"]["distribution"] == "sdnet-good"
    assert found["good"]["version"] == "1.2"
    for name, reason in (
        ("raises", "out of order"),
        ("exits", "SystemExit"),
        ("bad_syntax", "SyntaxError"),
        ("bad_commands", "no_such_module_anywhere"),
    ):
        assert found[name]["state"] == "failed", name
        assert reason in found[name]["reason"]
    as_text = sdnet("plugins").stdout
    assert "out of order" in as_text
    assert all(len(line.split()) > 3 for line in as_text.splitlines())


def test_plugins_are_listed_without_loading_them(sdnet: Sdnet) -> None:
    found = listed(sdnet("plugins", "--no-load", "--json"))
    assert {found[name]["state"] for name in ("good", *BROKEN)} == {"found"}
    found = listed(sdnet("plugins", "--json", SDNET_DISABLE_PLUGINS="raises,good"))
    assert found["raises"]["state"] == found["good"]["state"] == "disabled"
    done = sdnet("greet", "well", SDNET_DISABLE_PLUGINS="good")
    assert (done.returncode, done.stdout) == (2, "")
    # Strict is for nodes; the list, and the commands that work, are wanted then most of all.
    assert listed(sdnet("plugins", "--json", SDNET_STRICT="1"))["raises"]["state"] == "failed"
    assert sdnet("greet", "well", SDNET_STRICT="1").returncode == 0


def test_a_wrong_setting_is_named(sdnet: Sdnet) -> None:
    done = sdnet("status", SDNET_LOG_LEVEL="loud")
    assert done.returncode == 2
    assert "SDNET_LOG_LEVEL" in done.stderr
    done = sdnet("--help", SDNET_LOG_LEVEL="loud")
    assert done.returncode == 0
    assert "SDNET_LOG_LEVEL" in done.stderr
    assert "\n  start " in done.stdout


def test_the_list_of_plugins_needs_no_libp2p(environ: dict[str, str]) -> None:
    script = (
        "import sys; from sdnet_core.cli.main import main; main(['plugins', '--json'])\n"
        "heavy = {'libp2p', 'trio', 'starlette', 'hypercorn'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["devices"], ["plugins", "--no-load"], ["version"]])
def test_commands_import_nothing_heavy(environ: dict[str, str], arguments: list[str]) -> None:
    script = (
        "import sys; from sdnet_core.cli.main import main; main(sys.argv[1:])\n"
        "heavy = {'libp2p', 'trio', 'starlette', 'hypercorn', 'zeroconf', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments", [["devices"], ["events", "-f"], ["audit", "-f"], ["msg", "listen"], ["sync", "watch", "x"]]
)
def test_interrupted_while_it_waits(environ: dict[str, str], arguments: list[str]) -> None:
    script = (
        "import os, signal, sys, threading; from sdnet_core.cli import main as m, kit\n"
        "def wait(*a, **k):\n"
        "    print('waiting', flush=True); signal.pause()\n"
        "kit.ApiClient.get = kit.ApiClient.stream = wait\n"
        "sys.exit(m.main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command, click.Context]]:
    ctx = click.Context(command, info_name=name, obj=Cli(None))
    if not isinstance(command, click.Group):
        yield name, command, ctx
        return
    for part in command.list_commands(ctx):
        found = command.get_command(ctx, part)
        assert found is not None
        yield from commands(found, f"{name} {part}")


def test_every_command_has_an_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDNET_HOME", str(tmp_path))
    found = list(commands(main.sdnet, "sdnet"))
    assert len(found) > 40
    for name, command, ctx in found:
        text = command.get_help(ctx)
        assert "Examples:" in text, name
        assert name in text.partition("Examples:")[2], f"{name}: the example is of another command"


def test_wrong_usage_as_json(sdnet: Sdnet) -> None:
    problem = json.loads(sdnet("devices", "--json", "--nonsense").stderr)
    assert problem["title"] == "The command was used wrongly."
    assert problem["exit_code"] == 2


def test_the_command_of_a_disabled_plugin(sdnet: Sdnet, environ: dict[str, str]) -> None:
    environ["SDNET_DISABLE_PLUGINS"] = "messaging"
    done = subprocess.run([*COMMAND, "messaging"], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "the plugin 'messaging' is disabled" in done.stderr
