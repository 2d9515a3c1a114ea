"""``sdnet data``"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from ..errors import ConflictError, NotFoundError, StorageError
from .kit import Cli, format_size, json_option, pass_cli
from .names import check_names

__all__ = ["data"]


@click.group(
    epilog="\b\nExamples:\n  sdnet data path\n  sdnet data list\n  sdnet data purge weather\n  sdnet data purge --all"
)
def data() -> None:
    """Show where this node keeps its data, and remove what is not wanted any more.

    The data of a plugin stay when it is uninstalled or disabled; purge removes them for good.
    """


@data.command(epilog="\b\nExamples:\n  sdnet data path\n  sdnet data path weather")
@click.argument("plugin", required=False)
@pass_cli
def path(cli: Cli, plugin: str | None) -> None:
    """Print the folder of this node's data, or of PLUGIN's own."""
    if plugin is None:
        cli.print(str(cli.config.paths.data))
        return
    known = {*_plugins(cli), *(record.name for record in cli.find_plugins(load=False).records)}
    check_names([plugin], known, "No plugin {} is installed, and there are no data of one.")
    cli.print(str(_folders(cli, plugin)[0]))


@data.command("list", epilog="\b\nExamples:\n  sdnet data list --json")
@json_option
@pass_cli
def list_(cli: Cli, as_json: bool) -> None:
    """List what is stored, with its size; also of plugins that are gone."""
    installed = {record.name for record in cli.find_plugins(load=False).records}
    sizes = {name: sum(map(_size, _folders(cli, name))) for name in _plugins(cli)}
    total = _size(cli.config.paths.data)
    rows: list[dict[str, Any]] = [{"name": "(core)", "bytes": total - sum(sizes.values()), "installed": True}]
    rows += [{"name": name, "bytes": size, "installed": name in installed} for name, size in sizes.items()]
    if as_json:
        cli.print_json({"path": str(cli.config.paths.data), "bytes": total, "parts": rows})
        return
    shown = [{**row, "size": format_size(row["bytes"])} for row in rows]
    cli.table(shown, [("name", "NAME"), ("size", "SIZE"), ("installed", "INSTALLED")])


@data.command(
    epilog="\b\nExamples:\n"
    "  sdnet data purge weather            what the plugin stored\n"
    "  sdnet data purge --all              identity, paired devices, everything; asks first\n"
    "  sdnet data purge --all --yes        the same without asking"
)
@click.argument("plugin", required=False)
@click.option("--all", "everything", is_flag=True, help="All data of this node, its identity and pairings included.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_cli
def purge(cli: Cli, plugin: str | None, everything: bool, yes: bool, as_json: bool) -> None:
    """Remove the data of PLUGIN for good, or all data of this node. The node must be stopped.

    Received files, settings and logs stay. After --all the next start makes a new identity, and every device has to
    be paired anew.
    """
    if (plugin is None) == (not everything):
        raise click.UsageError("Name a plugin, or give --all.")
    root = cli.config.paths.data
    if plugin is not None and plugin not in _plugins(cli):
        raise NotFoundError(
            f"There are no data of a plugin {plugin!r}; there are of: {', '.join(_plugins(cli)) or 'none'}."
        )
    if everything and not root.exists():
        raise NotFoundError(f"There are no data in {root}.")
    targets = [root] if plugin is None else _folders(cli, plugin)
    _refuse_while_running(cli)
    size = sum(map(_size, targets))
    if not yes:
        what = "ALL data of this node, its identity and pairings included" if everything else f"the data of {plugin}"
        click.confirm(f"Remove {what} ({format_size(size)}) for good?", abort=True, err=True)
    _remove(cli, targets, everything)
    if as_json:
        cli.print_json({"removed": [str(target) for target in targets], "bytes": size})
    else:
        cli.print(f"Removed {format_size(size)}.")


def _refuse_while_running(cli: Cli) -> None:
    from ..daemon.process import lock_holder

    if lock_holder(cli.config) is not None:
        raise ConflictError("The node is running; stop it first: sdnet stop")


def _remove(cli: Cli, targets: list[Path], everything: bool) -> None:
    from ..storage import DirectoryLock

    _refuse_while_running(cli)
    try:
        with DirectoryLock(cli.config.paths.data):
            for target in targets:
                for entry in target.iterdir() if everything else [target]:
                    if entry == cli.config.paths.lock_file or not entry.exists():
                        continue
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    except OSError as error:
        raise StorageError(f"{error.filename or targets[0]} could not be removed: {error.strerror}.") from error


def _plugins(cli: Cli) -> list[str]:
    """The plugins of which there are data."""
    root = cli.config.paths.data
    found = {
        p.name for base in (root / "plugins", root / "network" / "plugins") if base.is_dir() for p in base.iterdir()
    }
    return sorted(found)


def _folders(cli: Cli, plugin: str) -> list[Path]:
    root = cli.config.paths.data
    return [root / "plugins" / plugin, root / "network" / "plugins" / plugin]


def _size(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.lstat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())
