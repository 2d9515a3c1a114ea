"""Writes the pages of docs/reference that follow from the code: commands, settings, hooks, errors, events.

`python tools/reference.py` writes them; `tests/test_docs.py` checks that they are in step.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import click
import msgspec

from sdnet_core import config, errors, hookspecs
from sdnet_core.cli.main import core_commands, sdnet
from sdnet_core.cli.manual import manual_page
from sdnet_core.events import NetworkEvent
from sdnet_core.hookspecs import Route
from sdnet_core.plugins import find_plugins
from sdnet_core.settings_file import explain_setting
from sdnet_core.testing import linked_nodes

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "<!-- Written by tools/reference.py; change the code's own texts instead. -->\n\n"

WHAT_TO_DO = {
    "NetworkingError": "Read the message; the log (`sdnet status` says where) has more.",
    "ConfigurationError": "Correct the setting that the message names: the file, the variable or the argument.",
    "InvalidRequestError": "Correct the request; the message says which part.",
    "ConflictError": "Look at the state the message names, and do what it needs first.",
    "NotFoundError": "List what there is, and use an id from the list.",
    "DeviceNotFoundError": "`sdnet devices` lists the paired devices; give more of the name or id if several fit.",
    "NotRunningError": "`sdnet start`, with the same `--instance`.",
    "AlreadyRunningError": "Use the node that runs, or `sdnet stop` it; two nodes need two instances.",
    "TransportError": "Check the addresses in `[node] listen`, the firewall, and whether a port is taken.",
    "ConnectionFailedError": "Is the other device on, and its node running? It is tried again by itself.",
    "NetworkTimeoutError": "Try again; if it lasts, `sdnet ping` says whether the device answers at all.",
    "ProtocolError": "Update sdnet and its plugins on both devices; the message says which protocol.",
    "SerializationError": "As a protocol error. From the disk: the store's recovery has told what it did.",
    "AuthenticationFailedError": "Do not go on. Compare fingerprints; pair anew if a device was set up afresh.",
    "RefusedError": "Ask the person at the other device, or its settings; trust may have been lowered.",
    "TryLaterError": "Nothing: it is tried again.",
    "EncryptionError": "On disk: wrong passphrase or changed files; restore a backup. On the wire: it was cut off.",
    "StorageError": "Check the disk's space and the folder's permissions; the message names the file.",
    "PluginError": "`sdnet plugins` says which plugin and why; `sdnet plugin check NAME` says more.",
}


def manual() -> str:
    """The manual page of the core's commands."""
    return manual_page(sdnet, click.Context(sdnet, info_name="sdnet"), only=core_commands())


def pages() -> dict[str, str]:
    """The text of every page, by its file's name."""
    return {
        "commands.md": NOTE + commands(),
        "configuration.md": NOTE + configuration(),
        "hooks.md": NOTE + hooks(),
        "errors.md": NOTE + error_list(),
        "events.md": NOTE + event_list(),
        "plugins.md": NOTE + plugin_list(),
        "../man/sdnet.1": manual(),
    }


def commands() -> str:
    """Every command of the core."""
    lines = [
        "# Commands\n",
        "All commands of the core, as `--help` describes them; [plugins](plugins.md) add theirs. What they have in "
        "common is on [the command line](cli.md).\n",
    ]
    root = click.Context(sdnet, info_name="sdnet")
    for name in sorted(core_commands()):
        command = sdnet.get_command(root, name)
        if command is not None:
            lines += _command(command, click.Context(command, info_name=name, parent=root), "##")
    return "\n".join(lines).rstrip() + "\n"


def _command(command: click.Command, context: click.Context, heading: str) -> list[str]:
    """A command and all below it."""
    lines: list[str] = []

    def add(command: click.Command, context: click.Context) -> None:
        lines.append(f"{heading} `{context.command_path}`\n")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        lines.append(f"```text\n{usage}\n```\n")
        lines.append(inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n")
        options = [p for p in command.get_params(context) if isinstance(p, click.Option) and not p.hidden]
        rows = [record for p in options if "--help" not in p.opts and (record := p.get_help_record(context))]
        if rows:
            lines.append("| option | does |\n|---|---|")
            lines.extend(f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows)
            lines.append("")
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None and not child.hidden:
                    add(child, click.Context(child, info_name=name, parent=context))

    add(command, context)
    return lines


def configuration() -> str:
    """Every key of the configuration file."""
    lines = [
        "# Settings\n",
        "The file is `config.toml` in the platform's configuration folder (`~/.config/sdnet/<instance>/` on Linux) or, "
        "with `SDNET_HOME`, in `$SDNET_HOME/<instance>/`. A variable `SDNET_<SECTION>_<KEY>` overrides it; arguments "
        "override both. A node reads its settings when it starts.\n",
    ]
    for name in sorted(config.SECTIONS):
        lines.append(_section(name, config.SECTIONS[name]))
    lines.append(_section("plugins", config.PluginSettings, skip={"tables"}))
    lines.append("Each plugin's own table is `[plugins.<name>]`: [those of the plugins here](plugins.md).")
    return "\n".join(lines).rstrip() + "\n"


def plugin_list() -> str:
    """Commands, settings and routes of the plugins of this repository."""
    lines = [
        "# Plugins\n",
        "The plugins of the `sdnet` distribution: the settings, the routes of the [local API](local-api.md) and the "
        "commands of each. A plugin that is not installed has none of them; `sdnet plugins` lists those that are.\n",
    ]
    root = click.Context(sdnet, info_name="sdnet")
    found = find_plugins(config.PluginSettings())
    settings = found.config_types()
    folders = FOLDER.parent.parent.glob("plugins/*")
    here = {folder.name.replace("_", "-") for folder in folders}
    records = [record for record in found.loaded if record.distribution in here]
    routes = anyio.run(_routes, [type(record.plugin) for record in records])
    for record in records:
        lines.append(f"## {record.name}\n")
        if record.name in settings:
            lines.append(_section(f"plugins.{record.name}", settings[record.name], level="###"))
        lines += [f"### Routes of {record.name}\n", "| route | does |", "|---|---|"]
        prefix = f"/v1/{record.name.replace('_', '-')}"
        own = sorted((route for name, route in routes if name == record.name), key=lambda r: (r.path, r.method))
        lines += [f"| `{route.method} {prefix}{route.path}` | {_cell(route.summary)} |" for route in own]
        lines.append("")
        for command in sorted(found.call(record, "sdnet_commands") or (), key=lambda command: str(command.name)):
            lines += _command(command, click.Context(command, info_name=command.name, parent=root), "###")
    return "\n".join(lines).rstrip() + "\n"


async def _routes(plugins: list[type]) -> list[tuple[str, Route]]:
    """The routes of plugins, asked of them in a node in memory."""
    async with linked_nodes(1, plugins=plugins) as (node,):
        return node.routes()


def _section(
    name: str, type_: type[msgspec.Struct], skip: frozenset[str] | set[str] = frozenset(), level: str = "##"
) -> str:
    lines = [f"{level} `[{name}]`\n", "| key | type | default | meaning |", "|---|---|---|---|"]
    for item in msgspec.structs.fields(type_):
        if item.name in skip:
            continue
        text = explain_setting(type_, item.name)
        default = item.default if item.default is not msgspec.NODEFAULT else item.default_factory()
        lines.append(f"| `{item.name}` | {_type(item.type)} | {_value(default)} | {_cell(text)} |")
    return "\n".join(lines) + "\n"


def _type(type_: Any) -> str:
    text = str(type_)
    names = {
        "tuple": "list of texts",
        "Literal": "one of a few words",
        "bool": "true or false",
        "int": "whole number",
        "float": "number",
        "str": "text",
    }
    return next((name for key, name in names.items() if key in text), "value")


def _value(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case tuple() | list():
            return f"`[{', '.join(repr(item).replace(chr(39), chr(34)) for item in value)}]`"
        case str():
            return f'`"{value}"`'
        case _:
            return f"`{value}`"


def hooks() -> str:
    """Every hook, and the records they return."""
    lines = ["# Hooks\n", _ticks(inspect.cleandoc(hookspecs.__doc__ or "").split("\n\nExample")[0]) + "\n"]
    for name, function in vars(hookspecs.SdnetSpecs).items():
        if name.startswith("sdnet_"):
            parameters = ", ".join(p for p in inspect.signature(function).parameters if p != "self")
            lines.append(f"## `{name}({parameters})`\n\n{_prose(function)}\n")
    lines.append("# Records\n")
    from sdnet_core.protocols.handler import Capability, ProtocolSpec

    for record in (ProtocolSpec, Capability, *(getattr(hookspecs, n) for n in hookspecs.__all__ if n[0].isupper())):
        if inspect.isclass(record) and record is not hookspecs.SdnetSpecs:
            lines.append(f"## `{record.__name__}`\n\n{_prose(record)}\n")
    return "\n".join(lines).rstrip() + "\n"


def error_list() -> str:
    """Every error and what to do about it."""
    lines = [
        "# Errors\n",
        "Every one is a `NetworkingError` of `sdnet_core.errors`. The code is the end of `type` in a problem document "
        "of the [local API](local-api.md).\n",
        "| error | code | HTTP | exit | what happened | what to do |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("NetworkingError", *sorted(set(errors.__all__) - {"NetworkingError"})):
        error = getattr(errors, name)
        what = " ".join((inspect.getdoc(error) or "").split("\n\n")[0].split())
        lines.append(
            f"| `{name}` | `{error.code}` | {error.http_status} | {error.exit_code} | {_cell(what)} "
            f"| {_cell(WHAT_TO_DO[name])} |"
        )
    return "\n".join(lines) + "\n"


def event_list() -> str:
    """Every event of the core and of the plugins here."""
    lines = [
        "# Events\n",
        "What `sdnet events`, `GET /v1/events` of the [local API](local-api.md), the hook `sdnet_event` and "
        "`core.subscribe_events()` tell of. Every event has its `kind`, `at` (seconds since the epoch) and `seq` (its "
        "number in this run of the node). Those with a mark are kept in the [audit log](trust.md), too. None carries "
        "what devices send each other, but for the texts and names that a person is to see.\n",
    ]
    for source in sorted(FOLDER.parent.parent.glob("plugins/*/src")):
        for file in sorted(source.rglob("*.py")):
            # Whatever is defined in any module, so that the page does not depend on what else was imported.
            if "NetworkEvent" in file.read_text(encoding="utf-8"):
                importlib.import_module(".".join(file.relative_to(source).with_suffix("").parts))
    owners: dict[str, list[type[NetworkEvent]]] = {}
    for event in _final(NetworkEvent):
        owners.setdefault(event.__module__.partition(".")[0], []).append(event)
    for owner in ("sdnet_core", *sorted(owners.keys() - {"sdnet_core"})):
        title = "The core" if owner == "sdnet_core" else f"`{owner}`"
        lines += [f"## {title}\n", "| kind | class | fields | what happened |", "|---|---|---|---|"]
        for event in sorted(owners[owner], key=lambda event: event.kind):
            fields = ", ".join(f"`{f.name}`" for f in dataclasses.fields(event) if f.name not in ("at", "seq"))
            mark = " ✓" if event.audited else ""
            text = _cell(_ticks((inspect.getdoc(event) or "").split("\n\n:param")[0]))
            lines.append(f"| `{event.kind}`{mark} | `{event.__name__}` | {fields} | {text} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _final(event: type[NetworkEvent]) -> Iterator[type[NetworkEvent]]:
    """The kinds of events that have none below them."""
    # A dataclass with slots is made twice; its first form is no name of its module.
    below = [one for one in event.__subclasses__() if getattr(sys.modules[one.__module__], one.__name__, None) is one]
    below = [one for one in below if one.__module__.startswith("sdnet_")]
    if not below and event is not NetworkEvent:
        yield event
    for one in below:
        yield from _final(one)


def _prose(thing: Any) -> str:
    """A docstring as Markdown."""
    text = inspect.getdoc(thing) or ""
    text = re.sub(r"Example::\n\n((?:    .*\n?|\n)+)", lambda m: f"```python\n{inspect.cleandoc(m[1])}\n```\n\n", text)
    text = re.sub(r"^:param (\w+): ", r"- `\1`: ", text, flags=re.MULTILINE)
    text = re.sub(r"^:(returns|raises)\s*(\w*): ", r"- *\1* \2: ", text, flags=re.MULTILINE)
    text = re.sub(r"\n(- )", r"\n\n\1", text, count=1)
    return _ticks(text)


def _ticks(text: str) -> str:
    return re.sub(r"(?<!`)``(?!`)", "`", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
