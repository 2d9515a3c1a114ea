"""The command ``sdnet``: the core's commands, and those of the plugins, loaded when they are asked for."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..daemon.api_error import ApiError
from ..errors import NetworkingError
from ..wording import nearest
from .declared import declared_command
from .kit import Cli, clean

if TYPE_CHECKING:
    from ..plugins import PluginSet

__all__ = ["core_commands", "main", "run"]

# Where each command of the core is defined; a module is imported when its command is used.
_COMMANDS = {
    "approvals": "approvals",
    "audit": "audit",
    "completion": "completion",
    "config": "config",
    "data": "data",
    "devices": "devices",
    "doctor": "doctor",
    "events": "events",
    "logs": "logs",
    "man": "completion",
    "node": "node_public",
    "passphrase": "passphrase",
    "ping": "devices",
    "plugin": "plugin",
    "plugins": "plugins",
    "restart": "node",
    "service": "service",
    "start": "node",
    "status": "node",
    "stop": "node",
    "version": "node",
}
_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141
"""As of a program that SIGPIPE ended, which a Python program is not by itself."""


class _ReaderLeftError(Exception):
    """Whoever read our output has closed it."""


class SdnetGroup(click.Group):
    """The core's commands by name, then the plugins'."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._plugin_commands: dict[str, click.Command] | None = None
        self._declared: dict[str, click.Command | None] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names; loads the plugins."""
        return sorted({*_COMMANDS, *self._load_plugin_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command; loads the plugins only if the core has none of that name."""
        if cmd_name in _COMMANDS:
            module = importlib.import_module(f"{__package__}.{_COMMANDS[cmd_name]}")
            command: click.Command = getattr(module, cmd_name)
            return command
        if cmd_name not in self._declared:  # it is asked for twice
            self._declared[cmd_name] = self._declared_command(ctx, cmd_name)
        return self._declared[cmd_name] or self._load_plugin_commands(ctx).get(cmd_name)

    def _declared_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command that a plugin declares as an entry point, so that no plugin has to be loaded for it.

        None if there is none, or if anything about it is unusual: then the plugins are loaded, and say what it is.
        """
        if self._plugin_commands is not None:
            return None
        found = declared_command(cmd_name)
        if found is None or not found.plugins:
            return None
        try:
            settings = (ctx.find_object(Cli) or Cli(ctx.params.get("instance"))).config.plugins
            if settings.strict or found.plugins & set(settings.disable):
                return None
            if settings.allow is not None and not found.plugins <= set(settings.allow):
                return None
            command = found.load()
        except Exception:  # loading the plugins says what is wrong
            return None
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may have been meant."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise self._unknown(ctx, args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a closed pipe is kept from click, which would end the process as if something had failed."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderLeftError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the core's commands and the plugins' apart."""
        plugin_commands = self._load_plugin_commands(ctx)
        for title, names in (("Commands", sorted(_COMMANDS)), ("Commands of plugins", sorted(plugin_commands))):
            found = [(name, command) for name in names if (command := self.get_command(ctx, name)) is not None]
            if found:
                width = formatter.width - 6 - max(len(name) for name, _ in found)
                with formatter.section(title):
                    formatter.write_dl([(name, command.get_short_help_str(width)) for name, command in found])

    def _unknown(self, ctx: click.Context, name: str) -> click.UsageError:
        for record in _plugins(ctx).records:
            if record.state != "loaded" and record.name.replace("_", "-") == name.replace("_", "-"):
                why = f"{record.state}: {record.reason}" if record.reason else record.state
                return click.UsageError(f"There is no command {name!r}: the plugin {record.name!r} is {why}.", ctx)
        hint = nearest(name, self.list_commands(ctx))
        if not hint and any(record.state != "loaded" for record in _plugins(ctx).records):
            hint = " If a plugin has it: sdnet plugins says which are not loaded, and why."
        return click.UsageError(f"There is no command {name!r}.{hint}", ctx)

    def _load_plugin_commands(self, ctx: click.Context) -> dict[str, click.Command]:
        if self._plugin_commands is None:
            commands = _plugins(ctx).commands()
            self._plugin_commands = {str(c.name): c for c in commands if c.name not in _COMMANDS}
        return self._plugin_commands


def core_commands() -> frozenset[str]:
    """The names of the core's own commands, which a plugin's command cannot have."""
    return frozenset(_COMMANDS)


def _plugins(ctx: click.Context) -> PluginSet:
    """The plugins, loaded without a node. A wrong setting leaves them out: the core's own commands must go on."""
    from ..plugins import PluginSet

    found = ctx.meta.get("sdnet.plugins")
    if found is None:
        cli = ctx.find_object(Cli) or Cli(ctx.params.get("instance"))
        try:
            found = cli.find_plugins()
        except NetworkingError as error:
            cli.note(f"sdnet: the plugins are left out: {error.detail}")
            found = PluginSet([])
        ctx.meta["sdnet.plugins"] = found
    return found


@click.group(
    cls=SdnetGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n"
    "  sdnet start                         run this device's node in the background\n"
    "  sdnet status                        its name, fingerprint and addresses\n"
    "  sdnet --instance test start         a second node, apart from the first\n"
    "  sdnet COMMAND --help                more about a command, with examples",
)
@click.option("--instance", metavar="NAME", help="Which node, if there are several. [env: SDNET_INSTANCE]")
@click.pass_context
def sdnet(ctx: click.Context, instance: str | None) -> None:
    """Connect your own devices: pair them once, then message and send files, end to end encrypted.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no node running, 4 refused by the other side, 130 interrupted.
    """
    ctx.obj = Cli(instance)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sdnet``.

    :param arguments: without the program's name; the process's own when None.
    :returns: the exit code.
    """
    debug = os.environ.get("SDNET_DEBUG", "") not in ("", "0")
    if not debug:
        # Without a handler, logging would print a failing plugin's traceback between a command's lines.
        logging.getLogger("sdnet_core").addHandler(logging.NullHandler())
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = sdnet.main(words, prog_name="sdnet", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (BrokenPipeError, _ReaderLeftError):
        _discard_output()
        return _EXIT_BROKEN_PIPE
    except (click.Abort, KeyboardInterrupt):
        if debug:
            raise
        return _EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _report(error, as_json="--json" in words)


def run() -> NoReturn:
    """Be the program ``sdnet``; end the process without taking the interpreter apart, which takes a while."""
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _report(error: Exception, *, as_json: bool) -> int:
    """Say what went wrong in one line, and give the exit code."""
    found: BaseException = error
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    match found:
        case click.ClickException():
            code, status, detail, exit_code = "usage", 400, found.format_message(), found.exit_code
        case NetworkingError():
            code, status, detail, exit_code = found.code, found.http_status, found.detail, found.exit_code
        case _:
            what = f"{type(found).__name__}: {found}".strip().removesuffix(":").removesuffix(".")
            code, status, detail, exit_code = "internal", 500, f"{what}. SDNET_DEBUG=1 shows where.", 1
    with contextlib.suppress(OSError):
        if as_json:
            document = {
                "type": f"urn:sdnet:error:{code}",
                "title": _title(found, code),
                "status": status,
                "detail": detail,
                "exit_code": exit_code,
            }
            click.echo(json.dumps(document), err=True)
        else:
            if isinstance(found, click.UsageError) and found.ctx is not None:
                click.echo(found.ctx.get_usage(), err=True)
            click.echo(f"sdnet: {clean(detail, keep_newlines=True)}", err=True)
    return exit_code


def _title(error: BaseException, code: str) -> str:
    """What kind of error it is, in a sentence."""
    match error:
        case click.ClickException():
            return "The command was used wrongly."
        case ApiError():
            return error.title
        case NetworkingError():
            return (type(error).__doc__ or code).split("\n", 1)[0]
        case _:
            return "A mistake of sdnet or of a plugin."


def _discard_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not trip over the closed pipe at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
