"""Checks whether a plugin is a good citizen: what ``sdnet plugin check`` runs."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

import anyio
import msgspec

from ..clock import SystemRandomness
from ..errors import InvalidRequestError, NetworkingError, NotFoundError, PluginError
from ..hookspecs import ENTRY_POINT_GROUP
from ..plugins import PluginRecord, PluginState, given_plugins
from ..wording import format_count
from .nodes import linked_nodes, pair
from .protocols import check_protocol

__all__ = ["Check", "CheckState", "ConformanceReport", "check_plugin"]

_PUBLIC = ("sdnet_core", "sdnet_core.cli.kit", "sdnet_core.errors", "sdnet_core.events", "sdnet_core.wire")
_HEAVY = ("aioquic", "cryptography", "grpc", "hypercorn", "libp2p", "starlette", "trio", "zeroconf")
"""What no command may wait for; a node imports them when it starts."""
_STOP_TIMEOUT_S = 5.0
_IMPORT_TIMEOUT_S = 60.0


class CheckState(StrEnum):
    """How one check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    """An earlier one failed, so that this one could not be made."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    :param details: what was found, a line each.
    """

    name: str
    state: CheckState
    details: tuple[str, ...] = ()


@dataclass(slots=True)
class ConformanceReport:
    """What `check_plugin` found.

    :param plugin: its entry point's name.
    """

    plugin: str
    distribution: str = ""
    version: str = ""
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings are no failures."""
        return all(check.state is not CheckState.FAILED for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "ok": self.ok,
            "checks": [
                {"name": check.name, "state": str(check.state), "details": list(check.details)} for check in self.checks
            ],
        }

    def __str__(self) -> str:
        lines = [f"{self.plugin} ({self.distribution or 'no distribution'} {self.version})".replace(" )", ")")]
        for check in self.checks:
            lines.append(f"  {check.state:8} {check.name}")
            lines += [f"             {line}" for detail in check.details for line in detail.splitlines()]
        failed = sum(check.state is CheckState.FAILED for check in self.checks)
        lines.append(f"{failed} of {len(self.checks)} checks failed." if failed else "A good citizen.")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Target:
    """The plugin to check.

    :param value: of its entry point: ``module:attribute``.
    :param sources: folders with its source, to import it from if it is not installed, and to read.
    """

    name: str
    value: str
    group: str
    distribution: str
    version: str
    requires: tuple[str, ...]
    search: Path | None
    sources: tuple[Path, ...]


def check_plugin(target: str) -> ConformanceReport:
    """Check a plugin. Blocking; nodes run in memory only.

    :param target: a folder with a ``pyproject.toml``, or the name of an installed plugin.
    :raises NotFoundError: there is neither.
    :raises InvalidRequestError: the folder's ``pyproject.toml`` names no plugin.
    """
    found = _from_folder(Path(target)) if (Path(target) / "pyproject.toml").is_file() else _from_installed(target)
    report = ConformanceReport(found.name, found.distribution, found.version)
    with _importable(found.search):
        _Run(found, report).run()
    return report


class _Run:
    """The checks of one plugin, one after the other; each says what it needs of those before."""

    def __init__(self, target: _Target, report: ConformanceReport) -> None:
        self._target = target
        self._report = report
        self._plugin: Any = None
        self._record: PluginRecord | None = None

    def run(self) -> None:
        """Make them all."""
        steps: list[tuple[str, Callable[[], list[str]]]] = [
            ("the distribution declares what it needs", self._metadata),
            ("the entry point loads", self._load),
            ("importing it is cheap", self._import_weight),
            ("it imports public names only", self._imports),
            ("its hooks are valid", self._hooks),
            ("its commands are documented", self._commands),
            ("it starts and stops with a node", self._lives),
            ("its protocols withstand hostile peers", self._attacks),
        ]
        broken = False
        for name, step in steps:
            if broken:
                self._report.checks.append(Check(name, CheckState.SKIPPED))
                continue
            try:
                warnings = step()
            except AssertionError as error:
                self._report.checks.append(Check(name, CheckState.FAILED, (str(error),)))
                broken = name in {steps[1][0], steps[4][0], steps[6][0]}
            except (Exception, SystemExit) as error:
                detail = error.detail if isinstance(error, NetworkingError) else f"{type(error).__name__}: {error}"
                self._report.checks.append(Check(name, CheckState.FAILED, (detail,)))
                broken = name in {steps[1][0], steps[4][0], steps[6][0]}
            else:
                bad = [text for text in warnings if not text.startswith("=")]
                details = tuple(text.removeprefix("=") for text in warnings)
                self._report.checks.append(Check(name, CheckState.WARNING if bad else CheckState.OK, details))

    # Each gives lines: those that begin with "=" only inform, others warn; what is wrong is raised.

    def _metadata(self) -> list[str]:
        if self._target.group != ENTRY_POINT_GROUP:
            raise PluginError(f"It is made for {self._target.group}; this sdnet has {ENTRY_POINT_GROUP}.")
        warnings = []
        needs = [text for text in self._target.requires if text.replace("_", "-").startswith("sdnet-core")]
        if not needs:
            warnings.append("It does not depend on sdnet-core.")
        elif not any(sign in needs[0] for sign in "<~="):
            warnings.append(f"{needs[0]}: without an upper bound it will be installed beside an sdnet it may not fit.")
        return warnings

    def _load(self) -> list[str]:
        module, _, attribute = self._target.value.partition(":")
        self._plugin = importlib.import_module(module)
        for part in filter(None, attribute.split(".")):
            self._plugin = getattr(self._plugin, part)
        if not inspect.isclass(self._plugin):
            return [f"{self._target.value} is no class; nodes in one process would share it."]
        return []

    def _import_weight(self) -> list[str]:
        module = self._target.value.partition(":")[0]
        program = (
            "import sys, time, json\n"
            "import sdnet_core.cli.main, sdnet_core.plugins, sdnet_core.cli.kit\n"
            "before = set(sys.modules); begun = time.perf_counter()\n"
            f"import {module}\n"
            "took = time.perf_counter() - begun\n"
            "print(json.dumps([took, len(set(sys.modules) - before), sorted(m.split('.')[0] for m in sys.modules)]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {self._search_path()!r}\n{program}"],
            capture_output=True,
            text=True,
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise PluginError(f"Importing {module} alone fails: {done.stderr.strip().splitlines()[-1]}")
        took_s, count, modules = json.loads(done.stdout.splitlines()[-1])
        heavy = sorted(set(modules) & set(_HEAVY))
        if heavy:
            raise PluginError(
                f"Importing {module} imports {', '.join(heavy)}, and every command waits for it. Import it inside the "
                "hooks instead."
            )
        return [f"={module}: {format_count(count, 'module')}, {took_s * 1000:.0f} ms"]

    def _search_path(self) -> list[str]:
        return [] if self._target.search is None else [str(self._target.search)]

    def _imports(self) -> list[str]:
        wrong = []
        for path in (path for folder in self._target.sources for path in sorted(folder.rglob("*.py"))):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for name in names:
                    if name.split(".")[0] == "sdnet_core" and name not in _PUBLIC:
                        wrong.append(f"{path.name}:{getattr(node, 'lineno', 0)} imports {name}, which is not public.")
        return wrong

    def _hooks(self) -> list[str]:
        plugins = given_plugins([self._plugin])
        (record,) = plugins.records
        record.name = self._target.name
        if record.state is not PluginState.LOADED:
            raise PluginError(f"It {record.reason}.")
        hooks = [name for name in dir(self._plugin) if name.startswith("sdnet_")]
        used = [name for name in hooks if plugins.implements(record, name)]
        idle = sorted(set(hooks) - set(used))
        if not used:
            raise PluginError("It implements no hook: mark its methods with @hookimpl.")
        settings = plugins.call(record, "sdnet_config")
        if settings is not None:
            try:
                msgspec.convert({}, settings)
            except msgspec.ValidationError as error:
                raise PluginError(f"Without a [plugins.{record.name}] table it does not start: {error}.") from error
        return [f"={', '.join(used)}", *(f"{name} is not marked with @hookimpl." for name in idle)]

    def _commands(self) -> list[str]:
        import click

        plugins = given_plugins([self._plugin])
        commands = plugins.commands()
        if plugins.records[0].state is not PluginState.LOADED:
            raise PluginError(f"It {plugins.records[0].reason}.")
        undocumented = []

        def look(command: click.Command, path: str) -> None:
            if not command.help:
                undocumented.append(f"sdnet {path} has no help.")
            if isinstance(command, click.Group):
                for name, child in command.commands.items():
                    look(child, f"{path} {name}")

        for command in commands:
            look(command, str(command.name))
        return [*(f"=sdnet {command.name}" for command in commands), *undocumented]

    def _lives(self) -> list[str]:
        anyio.run(self._live, backend="asyncio")
        return anyio.run(self._live, backend="trio")

    async def _live(self) -> list[str]:
        lines: list[str] = []
        async with linked_nodes(2, plugins=[_named(self._plugin, self._target.name)], paired=False) as nodes:
            for node in nodes:
                (record,) = node.plugin_records()
                if record.state is not PluginState.LOADED:
                    raise PluginError(f"It {record.reason}." + (f"\n{record.traceback}" if record.traceback else ""))
            lines += [f"={protocol_id}" for protocol_id in record.protocols]
            if record.capabilities:
                lines.append(f"=may: {', '.join(record.capabilities)}")
            for plugin, route in nodes[0].routes():
                if not route.path.startswith("/"):
                    raise PluginError(f"The path of route {route.method} {route.path!r} does not begin with a slash.")
                lines.append(f"={route.method} /v1/{plugin.replace('_', '-')}{route.path}")
                if not route.summary:
                    lines.append(f"Route {route.method} {route.path} has no summary.")
            await pair(nodes[0], nodes[1], SystemRandomness())
            begun = anyio.current_time()
        took_s = anyio.current_time() - begun
        if took_s > _STOP_TIMEOUT_S:
            raise PluginError(f"Two nodes took {took_s:.1f} s to stop: its tasks do not end when they are cancelled.")
        if record.reason:
            raise PluginError(f"It raised while the node ran: {record.reason}.")
        return lines

    def _attacks(self) -> list[str]:
        report = anyio.run(check_protocol, _named(self._plugin, self._target.name))
        return [f"={format_count(len(report.attempts), 'attack')}"]


def _named(plugin: Any, name: str) -> Any:
    """The plugin under its entry point's name, as an installed one has."""
    if not inspect.isclass(plugin):
        return plugin
    return type(plugin.__name__, (plugin,), {"name": name, "__module__": plugin.__module__})


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _from_folder(folder: Path) -> _Target:
    file = folder / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{file} is not valid TOML: {error}.") from error
    groups = project.get("entry-points", {})
    for group in sorted(groups, key=lambda name: name != ENTRY_POINT_GROUP):
        if group.startswith("sdnet.plugins.") and groups[group]:
            name, value = next(iter(groups[group].items()))
            break
    else:
        raise InvalidRequestError(f'{file} has no [project.entry-points."{ENTRY_POINT_GROUP}"], so it is no plugin.')
    root = (folder / "src" if (folder / "src").is_dir() else folder).resolve()
    package = root / value.partition(":")[0].split(".")[0]
    return _Target(
        name=name,
        value=value,
        group=group,
        distribution=str(project.get("name", "")),
        version=str(project.get("version", "")),
        requires=tuple(project.get("dependencies", ())),
        search=root,
        sources=(package,) if package.is_dir() else (),
    )


def _from_installed(name: str) -> _Target:
    for distribution in metadata.distributions():
        for entry_point in distribution.entry_points:
            if entry_point.name == name and entry_point.group.startswith("sdnet.plugins."):
                module = entry_point.value.partition(":")[0].split(".")[0]
                spec = importlib.util.find_spec(module)
                return _Target(
                    name=name,
                    value=entry_point.value,
                    group=entry_point.group,
                    distribution=distribution.name,
                    version=distribution.version,
                    requires=tuple(distribution.requires or ()),
                    search=None,
                    sources=tuple(Path(place) for place in (spec.submodule_search_locations or ())) if spec else (),
                )
    raise NotFoundError(f"No plugin {name!r} is installed, and there is no folder of that name with a pyproject.toml.")
