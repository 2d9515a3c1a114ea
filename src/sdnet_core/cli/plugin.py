"""``sdnet plugin``: start a plugin of one's own, and check one."""

from __future__ import annotations

from pathlib import Path

import click

from .kit import Cli, json_option, pass_cli

__all__ = ["plugin"]


@click.group()
def plugin() -> None:
    """Write a plugin of your own, and check it.

    The installed ones are listed by: sdnet plugins
    """


@plugin.command(
    epilog="\b\nExamples:\n"
    "  sdnet plugin new weather\n"
    "  cd sdnet-weather && pip install -e . pytest && pytest\n"
    "  sdnet plugin new notes --dir ~/src --description 'Notes between my devices.'"
)
@click.argument("name")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    help="Where the new folder sdnet-NAME goes; here by default.",
)
@click.option("--description", metavar="TEXT", help="One sentence about it.")
@json_option
@pass_cli
def new(cli: Cli, name: str, directory: Path, description: str | None, as_json: bool) -> None:
    """Write a new plugin, NAME, as a distribution of its own.

    It has a protocol, a service, a route of the local API, a command, tests that pass, a README and a workflow for
    continuous integration. NAME is lower-case letters, digits and underscores.
    """
    from .plugin_new import write_plugin

    folder, files = write_plugin(name, directory, description)
    if as_json:
        cli.print_json({"folder": str(folder), "files": [str(file) for file in files]})
        return
    for file in files:
        cli.print(str(folder / file))
    cli.note(f"Now: cd {folder} && pip install -e . pytest && pytest")


@plugin.command(
    epilog="\b\nExamples:\n"
    "  sdnet plugin check .                a folder with a pyproject.toml; need not be installed\n"
    "  sdnet plugin check weather          an installed plugin, by its name in: sdnet plugins"
)
@click.argument("target", metavar="PATH|NAME")
@json_option
@pass_cli
def check(cli: Cli, target: str, as_json: bool) -> None:
    """Check that a plugin is a good citizen.

    That it loads, that its hooks are valid and its imports light; what it declares; that its service starts and stops;
    and that its protocols withstand hostile peers, tried in nodes in memory. Ends with 1 if a check failed.
    """
    from ..testing.conformance import check_plugin

    report = check_plugin(target)
    if as_json:
        cli.print_json(report.to_dict())
    else:
        cli.print(str(report))
    if not report.ok:
        raise click.exceptions.Exit(1)
