"""The manual page, made of the commands' own help; the language is that of man(7)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from importlib import metadata

import click

__all__ = ["manual_page"]


def manual_page(root: click.Group, ctx: click.Context, *, only: Iterable[str] | None = None) -> str:
    """Write the manual page ``sdnet(1)``.

    :param ctx: the group's context; its plugins are loaded unless ``only`` leaves them out.
    :param only: names of the commands to describe; all of them when None.
    :returns: text for man(1).
    """
    version = metadata.version("sdnet-core")
    lines = [f'.TH SDNET 1 "" "sdnet {version}" "sdnet"', ".SH NAME"]
    paragraphs = _paragraphs(root)
    summary = next(paragraphs, "").split(":")[0].rstrip(".")
    lines += [f"sdnet \\- {_text(summary[:1].lower() + summary[1:])}", ".SH SYNOPSIS"]
    lines += [".B sdnet", '.RI [ OPTIONS ] " COMMAND " [ ARGUMENTS ]', ".SH DESCRIPTION"]
    lines += _block([" ".join((root.help or "").split("\n\n")[0].split()), *paragraphs])
    lines += [".SH OPTIONS", *_options(root, ctx), ".SH COMMANDS"]
    for name in sorted(root.list_commands(ctx) if only is None else only):
        if (command := root.get_command(ctx, name)) is not None and not command.hidden:
            lines += _command(command, click.Context(command, info_name=name, parent=ctx))
    lines += [".SH ENVIRONMENT"]
    lines += [".TP", ".B SDNET_HOME", "Keeps everything below one folder."]
    lines += [".TP", ".B SDNET_INSTANCE", "Which node, if there are several."]
    lines += [".TP", ".B SDNET_DEBUG", "Set to 1, shows where an unexpected error comes from."]
    lines += [
        ".TP",
        ".BI SDNET_ SECTION _ KEY",
        "Overrides a setting of the configuration file; see sdnet config list.",
    ]
    return "\n".join(lines) + "\n"


def _command(command: click.Command, ctx: click.Context) -> Iterator[str]:
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    yield f".SS {_text(usage)}"
    yield from _block(_paragraphs(command))
    yield from _options(command, ctx)
    if command.epilog:
        examples = [line for line in inspect.cleandoc(command.epilog.replace("\b", "")).splitlines() if line.strip()]
        yield from (".PP", f"{_text(examples[0])}", ".RS", ".nf", *map(_text, examples[1:]), ".fi", ".RE")
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            if child is not None and not child.hidden:
                yield from _command(child, click.Context(child, info_name=name, parent=ctx))


def _options(command: click.Command, ctx: click.Context) -> Iterator[str]:
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if record is not None and "--help" not in parameter.opts:
            yield from (".TP", f".B {_text(record[0])}", _text(record[1]))


def _paragraphs(command: click.Command) -> Iterator[str]:
    for paragraph in inspect.cleandoc(command.help or "").replace("\b\n", "").split("\n\n"):
        if text := " ".join(paragraph.split()):
            yield text


def _block(paragraphs: Iterable[str]) -> Iterator[str]:
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".PP"
        yield _text(paragraph)


def _text(text: str) -> str:
    """Text as it is, also where roff would see a command or an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{text}" if text[:1] in (".", "'") else text
