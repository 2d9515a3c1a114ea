"""Finds, checks, loads and lists plugins; none of them can stop the node or the others.

Every hook is called plugin by plugin, each in isolation: one that raises is marked failed with its traceback, and what
it had registered is rolled back.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy

from .config import PluginSettings
from .errors import PluginError
from .hookspecs import ENTRY_POINT_GROUP, SdnetSpecs

if TYPE_CHECKING:
    import click

__all__ = ["PluginRecord", "PluginSet", "PluginState", "find_plugins"]

logger = logging.getLogger(__name__)

_GROUP = re.compile(r"sdnet\.plugins\.v\d+")


class PluginState(StrEnum):
    """What became of a plugin."""

    FOUND = "found"
    """Installed; not imported, because nobody asked for that."""
    LOADED = "loaded"
    FAILED = "failed"
    DISABLED = "disabled"
    """Switched off by the configuration, then it is not imported, or by a person while the node runs."""
    QUARANTINED = "quarantined"
    """It raised, flooded or leaked too much while it ran, and was stopped; ``sdnet plugins enable`` brings it back."""
    INCOMPATIBLE = "incompatible"
    """Made for another major version of the plugin interface; not imported."""


@dataclass(slots=True)
class PluginRecord:
    """One installed plugin.

    :param name: of its entry point.
    :param reason: why it is not loaded; empty if it is.
    :param traceback: of what it raised.
    """

    name: str
    distribution: str = ""
    version: str = ""
    state: PluginState = PluginState.FOUND
    protocols: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    reason: str = ""
    traceback: str = ""
    plugin: Any = field(default=None, repr=False)
    find: Callable[[], Any] | None = field(default=None, repr=False)
    """Gives the plugin's class or object; imports it if need be. None if there is none to be had."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "state": str(self.state),
            "protocols": list(self.protocols),
            "capabilities": list(self.capabilities),
            "reason": self.reason,
        }


class PluginSet:
    """All plugins of one node, or of one run of the command line."""

    def __init__(self, records: Sequence[PluginRecord]) -> None:
        self.records = tuple(sorted(records, key=lambda r: r.name))
        self._manager = pluggy.PluginManager("sdnet")
        self._manager.add_hookspecs(SdnetSpecs)

    def load(self) -> None:
        """Import and check every plugin that is found and not switched off."""
        for record in self.records:
            if record.state is PluginState.FOUND:
                self.load_one(record)

    def load_one(self, record: PluginRecord) -> None:
        """Import and check a plugin; ``record.state`` says what became of it. An object of its own is made each time.

        What is imported already is not imported anew.
        """
        record.reason = record.traceback = ""
        try:
            if record.find is None:
                raise PluginError("there is nothing to load.")
            found = record.find()
            record.plugin = found() if inspect.isclass(found) else found
            self._register(record)
            record.state = PluginState.LOADED
        except (Exception, SystemExit) as error:
            self.fail(record, f"could not be loaded: {_describe(error)}", error)

    def _register(self, record: PluginRecord) -> None:
        hooks = [
            (name, options)
            for name in dir(record.plugin)
            if (options := self._manager.parse_hookimpl_opts(record.plugin, name)) is not None
        ]
        for name, options in hooks:
            if inspect.iscoroutinefunction(getattr(record.plugin, name)):
                raise PluginError(f"{name} is an async function; hooks are plain functions that return records.")
            if options["wrapper"] or options["hookwrapper"]:
                raise PluginError(f"{name} is a hook wrapper; plugins cannot wrap each other's hooks.")
            if not hasattr(SdnetSpecs, name) and not options["optionalhook"]:
                raise PluginError(f"{name} is no hook of this version of sdnet.")
        try:
            self._manager.register(record.plugin, record.name)
            self._manager.check_pending()
        except BaseException:
            if self._manager.is_registered(record.plugin):
                self._manager.unregister(record.plugin)
            raise

    @property
    def loaded(self) -> tuple[PluginRecord, ...]:
        """The plugins that run."""
        return tuple(record for record in self.records if record.state is PluginState.LOADED)

    def call(self, record: PluginRecord, hook: str, /, **arguments: Any) -> Any:
        """Call one plugin's hook.

        :returns: what it returned, None if it does not implement the hook.
        :raises Exception: what the hook raised.
        """
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            if implementation.plugin is record.plugin:
                return implementation.function(*(arguments[name] for name in implementation.argnames))
        return None

    def implements(self, record: PluginRecord, hook: str) -> bool:
        """Whether a plugin implements a hook."""
        return any(i.plugin is record.plugin for i in getattr(self._manager.hook, hook).get_hookimpls())

    def config_types(self) -> dict[str, Any]:
        """The types of the plugins' own settings, by plugin; one whose hook raises is left out."""
        types = {}
        for record in self.loaded:
            try:
                type_ = self.call(record, "sdnet_config")
            except (Exception, SystemExit):
                logger.warning("plugin %s raised in sdnet_config", record.name, exc_info=True)
                continue
            if type_ is not None:
                types[record.name] = type_
        return types

    def fail(
        self,
        record: PluginRecord,
        reason: str,
        error: BaseException | None = None,
        *,
        state: PluginState = PluginState.FAILED,
    ) -> None:
        """Mark a plugin failed, or whatever else stopped it, and take its hooks out."""
        record.state = state
        record.reason = reason
        record.protocols = ()
        if error is not None:
            record.traceback = "".join(traceback.format_exception(error))
        if record.plugin is not None and self._manager.is_registered(record.plugin):
            self._manager.unregister(record.plugin)
        level = logging.INFO if state is PluginState.DISABLED else logging.ERROR
        logger.log(level, "plugin %s %s", record.name, reason, exc_info=error)

    def commands(self) -> list[click.Command]:
        """The command line commands of all plugins; the first plugin by name wins a name that two want."""
        import click

        found: dict[str, click.Command] = {}
        for record in self.loaded:
            try:
                mine = list(self.call(record, "sdnet_commands") or ())
                for command in mine:
                    if not isinstance(command, click.Command) or not command.name:
                        raise PluginError(f"sdnet_commands gave {command!r}, which is no command.")
                    if command.name in found:
                        raise PluginError(f"another plugin has the command {command.name!r} already.")
            except (Exception, SystemExit) as error:
                self.fail(record, f"failed in sdnet_commands: {_describe(error)}", error)
            else:
                found.update((str(command.name), command) for command in mine)
        return [found[name] for name in sorted(found)]


def find_plugins(settings: PluginSettings, *, load: bool = True) -> PluginSet:
    """Find the installed plugins through their entry points.

    :param load: import and check them too; otherwise they are only listed.
    :raises PluginError: one failed and ``settings.strict`` is set.
    """
    records: list[PluginRecord] = []
    taken: dict[str, PluginRecord] = {}
    for entry_point in sorted(_entry_points(), key=lambda e: (e.name, e.group != ENTRY_POINT_GROUP)):
        distribution = entry_point.dist
        record = PluginRecord(
            name=entry_point.name,
            distribution=distribution.name if distribution is not None else "",
            version=distribution.version if distribution is not None else "",
        )
        if entry_point.group != ENTRY_POINT_GROUP:
            record.state = PluginState.INCOMPATIBLE
            record.reason = f"needs {entry_point.group}; this sdnet has {ENTRY_POINT_GROUP}"
        elif (other := taken.get(record.name)) is not None:
            record.state = PluginState.FAILED
            record.reason = f"{other.distribution} and {record.distribution} both have a plugin of this name"
        else:
            taken[record.name] = record
            record.find = entry_point.load
            if entry_point.name in settings.disable:
                record.state, record.reason = PluginState.DISABLED, "disabled by the configuration"
            elif settings.allow is not None and entry_point.name not in settings.allow:
                record.state, record.reason = PluginState.DISABLED, "not among the plugins that are allowed"
        records.append(record)
    plugins = PluginSet(records)
    if load:
        plugins.load()
        if settings.strict:
            check_strict(plugins)
    return plugins


def given_plugins(classes: Iterable[Any]) -> PluginSet:
    """A set of plugins handed over by a host application or a test, instead of found."""
    plugins = PluginSet([PluginRecord(name=_name_of(plugin), find=partial(_given, plugin)) for plugin in classes])
    plugins.load()
    return plugins


def check_strict(plugins: PluginSet) -> None:
    """Insist that no plugin has failed.

    :raises PluginError: one has; says which and why.
    """
    for record in plugins.records:
        if record.state in (PluginState.FAILED, PluginState.INCOMPATIBLE):
            raise PluginError(f"Plugin {record.name} {record.reason} (and strict is on).")


def _entry_points() -> Iterable[metadata.EntryPoint]:
    # This tells distributions apart by the names of their folders, and reads no other metadata of them.
    found: Any = metadata.entry_points()
    return [e for group in sorted(found.groups) if _GROUP.fullmatch(group) for e in found.select(group=group)]


def _given(plugin: Any) -> Any:
    return plugin


def _name_of(plugin: Any) -> str:
    name = getattr(plugin, "name", None)
    if isinstance(name, str):
        return name
    class_name = plugin.__name__ if inspect.isclass(plugin) else type(plugin).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name.removesuffix("Plugin")).lower()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
