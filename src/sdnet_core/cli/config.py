"""``sdnet config``"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigurationError, NetworkingError, NotRunningError
from .bootstrap import bootstrap
from .kit import Cli, json_option, pass_cli

if TYPE_CHECKING:
    from ..settings_file import Setting, SettingsFile

__all__ = ["config", "settings_file"]


def settings_file(cli: Cli) -> SettingsFile:
    """The instance's configuration file, also when what it holds is wrong."""
    from ..settings_file import SettingsFile

    return SettingsFile(cli.instance, environ=os.environ, plugin_types=lambda: _plugin_types(cli))


def tell_restart(cli: Cli) -> None:
    """If a node runs, say that it does not know yet."""
    try:
        cli.client.get("/version")
    except (NotRunningError, ConfigurationError):
        return
    except NetworkingError:
        pass
    cli.note("The running node takes it up with: sdnet restart")


def _plugin_types(cli: Cli) -> dict[str, Any]:
    import msgspec

    from ..config import PluginSettings
    from ..plugins import find_plugins

    try:
        settings = msgspec.structs.replace(cli.config.plugins, strict=False)
    except ConfigurationError:
        settings = PluginSettings()
    types = find_plugins(settings).config_types()
    return {name: type_ for name, type_ in types.items() if issubclass(type_, msgspec.Struct)}


@click.group(
    epilog="\b\nExamples:\n"
    "  sdnet config list\n"
    "  sdnet config get node.name\n"
    "  sdnet config set connections.max_connections 200\n"
    "  sdnet config edit\n"
    "  sdnet config bootstrap add /dns4/meet.example.org/tcp/4001/p2p/12D3KooW…"
)
def config() -> None:
    """Show and change this node's settings.

    A setting's key is its place in the file: section.name, or plugins.PLUGIN.name. A change is checked before it is
    written; a running node takes it up when it restarts.
    """


@config.command("list", epilog="\b\nExamples:\n  sdnet config list\n  sdnet config list --changed --json")
@click.option("--changed", is_flag=True, help="Only those that differ from the defaults.")
@json_option
@pass_cli
def list_(cli: Cli, changed: bool, as_json: bool) -> None:
    """List all settings, their values and where each comes from."""
    found = [setting for setting in settings_file(cli).settings() if not changed or setting.origin != "default"]
    if as_json:
        cli.print_json([_to_dict(setting) for setting in found])
        return
    rows = [{**_to_dict(setting), "value": _shown(setting.value)} for setting in found]
    cli.table(
        rows,
        [("key", "KEY"), ("value", "VALUE"), ("origin", "FROM"), ("meaning", "MEANING")],
        empty="No setting differs from its default.",
    )


@config.command(epilog="\b\nExamples:\n  sdnet config get node.name\n  sdnet config get plugins.disable --json")
@click.argument("key")
@json_option
@pass_cli
def get(cli: Cli, key: str, as_json: bool) -> None:
    """Print the value of KEY."""
    setting = settings_file(cli).get(key)
    if as_json:
        cli.print_json(_to_dict(setting))
    else:
        cli.print(_shown(setting.value))


@config.command(
    "set",
    epilog="\b\nExamples:\n"
    "  sdnet config set node.name 'living room'\n"
    "  sdnet config set node.transports tcp ws\n"
    "  sdnet config set discovery.mdns false",
)
@click.argument("key")
@click.argument("value", nargs=-1, required=True)
@json_option
@pass_cli
def set_(cli: Cli, key: str, value: tuple[str, ...], as_json: bool) -> None:
    """Set KEY to VALUE in the configuration file; several values make a list."""
    setting = settings_file(cli).set(key, value)
    if as_json:
        cli.print_json(_to_dict(setting))
    else:
        cli.print(f"{key} = {_shown(setting.value)}")
    if setting.origin not in ("file", "default"):
        cli.note(f"The variable {setting.origin} overrides the file.")
    tell_restart(cli)


@config.command(epilog="\b\nExamples:\n  sdnet config unset node.name")
@click.argument("key")
@pass_cli
def unset(cli: Cli, key: str) -> None:
    """Take KEY out of the configuration file, so that its default holds."""
    if settings_file(cli).unset(key):
        cli.print(f"{key} has its default again.")
        tell_restart(cli)
    else:
        cli.note(f"{key} is not in the file.")


@config.command(epilog="\b\nExamples:\n  sdnet config check")
@pass_cli
def check(cli: Cli) -> None:
    """Say whether the settings are right, the plugins' own included."""
    file = settings_file(cli)
    file.check()
    cli.print(f"{file.path} is right." if file.path.exists() else f"{file.path} is not there; the defaults hold.")


@config.command(epilog="\b\nExamples:\n  sdnet config path")
@pass_cli
def path(cli: Cli) -> None:
    """Print where the configuration file is, or would be."""
    cli.print(str(settings_file(cli).path))


@config.command(epilog="\b\nExamples:\n  sdnet config edit\n  EDITOR=nano sdnet config edit")
@pass_cli
def edit(cli: Cli) -> None:
    """Open the configuration file in an editor, and take it only if it is right.

    The editor is the one that VISUAL or EDITOR names. What is wrong is said, and can be corrected at once.
    """
    file = settings_file(cli)
    text = file.text()
    while True:
        edited = click.edit(text, extension=".toml", require_save=True)
        if edited is None or edited == file.text():
            cli.note("Nothing was changed.")
            return
        try:
            file.replace(edited)
        except ConfigurationError as error:
            cli.note(f"sdnet: {error.detail}")
            if not click.confirm("Edit it again?", default=True, err=True):
                raise
            text = edited
        else:
            cli.print(f"{file.path} is changed.")
            tell_restart(cli)
            return


config.add_command(bootstrap)


def _to_dict(setting: Setting) -> dict[str, Any]:
    return {"key": setting.key, "value": setting.value, "origin": setting.origin, "meaning": setting.meaning}


def _shown(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list() | tuple():
            return ", ".join(map(_shown, value))
        case _:
            return str(value)
