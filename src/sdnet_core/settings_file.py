"""Reads and changes the configuration file, one setting at a time, and never leaves one behind that cannot be read.

A key is a setting's place in the file: ``node.name``, ``plugins.disable``, ``plugins.<plugin>.<its key>``. A change
keeps the file's comments and order, and is checked as a start would check it before it replaces the file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import msgspec
import tomlkit
import tomlkit.exceptions
from tomlkit.items import AbstractTable

from .clock import SystemRandomness
from .config import (
    SECTIONS,
    Config,
    PluginSettings,
    build_config,
    explain_invalid,
    find_paths,
    read_document,
    variable_of,
)
from .errors import ConfigurationError, NotFoundError, StorageError
from .storage.atomic import ensure_private_directory, write_atomic
from .wording import nearest

__all__ = ["Setting", "SettingsFile", "explain_setting"]

PluginTypes = Callable[[], Mapping[str, type[msgspec.Struct]]]
"""The types of the plugins' own tables, by plugin; asked only when a plugin's setting is meant."""

_KEY_PART = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting and where its value comes from.

    :param value: as it is now; None if it has no default and is not set.
    :param origin: ``default``, ``file``, or the name of the environment variable that overrides the file.
    :param meaning: from the documentation.
    """

    key: str
    value: Any
    origin: str
    meaning: str = ""


class SettingsFile:
    """One instance's configuration file.

    :param instance: its name; the default one when None.
    :raises ConfigurationError: that is no name.
    """

    def __init__(self, instance: str | None, *, environ: Mapping[str, str], plugin_types: PluginTypes) -> None:
        self._name, self._paths = find_paths(instance, environ=environ)
        self._environ = environ
        self._plugin_types = plugin_types
        self.path = self._paths.config_file

    def check(self) -> Config:
        """Read the file as a start would, the plugins' own tables included.

        :raises ConfigurationError: a setting is unknown or wrong; says which.
        """
        return self._check(read_document(self.path))

    def settings(self) -> Iterator[Setting]:
        """Every setting there is, by section; first the core's, then the plugins'.

        :raises ConfigurationError: the file cannot be read.
        """
        document = read_document(self.path)
        config = self._check(document)
        sections: dict[str, type[msgspec.Struct]] = {**SECTIONS, "plugins": PluginSettings}
        for section, type_ in sections.items():
            for name in type_.__struct_fields__:
                if (section, name) == ("plugins", "tables"):
                    continue
                value = msgspec.to_builtins(getattr(getattr(config, section), name))
                variable = variable_of(section, name)
                if variable in self._environ:
                    origin = variable
                else:
                    origin = "file" if name in document.get(section, {}) else "default"
                yield Setting(key=f"{section}.{name}", value=value, origin=origin, meaning=explain_setting(type_, name))
        yield from self._of_plugins(document)

    def _of_plugins(self, document: Mapping[str, Any]) -> Iterator[Setting]:
        tables = {k: v for k, v in document.get("plugins", {}).items() if isinstance(v, Mapping)}
        types = self._plugin_types()
        for plugin in sorted({*tables, *types}):
            table, type_ = tables.get(plugin, {}), types.get(plugin)
            if type_ is None:
                for name, value in table.items():
                    yield Setting(key=f"plugins.{plugin}.{name}", value=value, origin="file")
                continue
            values = _convert(table, type_, f"plugins.{plugin}")
            for name in type_.__struct_fields__:
                yield Setting(
                    key=f"plugins.{plugin}.{name}",
                    value=msgspec.to_builtins(getattr(values, name)),
                    origin="file" if name in table else "default",
                    meaning=explain_setting(type_, name),
                )

    def get(self, key: str) -> Setting:
        """One setting.

        :raises NotFoundError: there is none of that name; says which is near.
        :raises ConfigurationError: the file cannot be read.
        """
        found = {setting.key: setting for setting in self.settings()}
        if key not in found:
            raise NotFoundError(_unknown(key, found))
        return found[key]

    def set(self, key: str, words: Sequence[str]) -> Setting:
        """Change a setting in the file.

        :param words: the value's text; several for a list. A list's items may also be one word with commas.
        :returns: what holds now; its ``origin`` says if a variable overrides what was just written.
        :raises NotFoundError: there is no such setting.
        :raises ConfigurationError: the value does not fit; the file is as it was.
        :raises StorageError: the file could not be written, and is as it was.
        """
        parts = _split(key)
        value = self._parse(parts, words, key)

        def change(document: tomlkit.TOMLDocument) -> None:
            table: Any = document
            for part in parts[:-1]:
                if part not in table:
                    table[part] = tomlkit.table()
                table = table[part]
                if not isinstance(table, AbstractTable):
                    raise ConfigurationError(f"{self.path}: {part} is no table.")
            table[parts[-1]] = value

        self._change(change)
        return next(
            (setting for setting in self.settings() if setting.key == key), Setting(key=key, value=value, origin="file")
        )

    def unset(self, key: str) -> bool:
        """Take a setting out of the file, so that its default holds.

        :returns: whether it was there.
        :raises ConfigurationError: the file cannot be read, or would not be right without it.
        :raises StorageError: the file could not be written, and is as it was.
        """
        parts = _split(key)
        there = False

        def change(document: tomlkit.TOMLDocument) -> None:
            nonlocal there
            tables: list[Any] = [document]
            for part in parts[:-1]:
                tables.append(tables[-1].get(part))
                if not isinstance(tables[-1], AbstractTable):
                    return
            there = tables[-1].pop(parts[-1], None) is not None
            for part, inside, around in zip(parts[-2::-1], tables[:0:-1], tables[-2::-1], strict=True):
                if not inside:
                    around.pop(part)

        self._change(change)
        return there

    def add(self, key: str, word: str) -> bool:
        """Add an item to a list in the file.

        :returns: whether it was not among them.
        :raises NetworkingError: as `set`.
        """
        items = self._listed(key)
        if word in items:
            return False
        self.set(key, [*items, word])
        return True

    def remove(self, key: str, word: str) -> bool:
        """Take an item out of a list in the file.

        :returns: whether it was among them.
        :raises NetworkingError: as `set`.
        """
        items = self._listed(key)
        if word not in items:
            return False
        if rest := [item for item in items if item != word]:
            self.set(key, rest)
        else:
            self.unset(key)
        return True

    def replace(self, text: str) -> Config:
        """Put another text in the file's place, if it is right.

        :raises ConfigurationError: it is not; the file is as it was.
        :raises StorageError: the file could not be written, and is as it was.
        """
        try:
            document = tomlkit.parse(text)
        except tomlkit.exceptions.ParseError as error:
            raise ConfigurationError(f"That is not valid TOML: {error}.") from error
        config = self._check(document.unwrap())
        self._write(text)
        return config

    def text(self) -> str:
        """The file's text; empty if there is none.

        :raises ConfigurationError: it cannot be read.
        """
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.path} cannot be read: {error}.") from error

    def _listed(self, key: str) -> list[str]:
        value: Any = read_document(self.path)
        for part in _split(key):
            value = value.get(part, {}) if isinstance(value, Mapping) else {}
        return [str(item) for item in value] if isinstance(value, list) else []

    def _change(self, change: Callable[[tomlkit.TOMLDocument], None]) -> None:
        before = self.text()
        try:
            document = tomlkit.parse(before)
        except tomlkit.exceptions.ParseError as error:
            raise ConfigurationError(f"{self.path} is not valid TOML: {error}.") from error
        change(document)
        self._check(document.unwrap())
        if (after := tomlkit.dumps(document)) != before:
            self._write(after)

    def _write(self, text: str) -> None:
        try:
            ensure_private_directory(self.path.parent)
            write_atomic(self.path, text.encode(), randomness=SystemRandomness(), keep_previous=False)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}.") from error

    def _check(self, document: Mapping[str, Any]) -> Config:
        config = build_config(self._name, self._paths, document, environ=self._environ)
        if config.plugins.tables:
            types = self._plugin_types()
            for plugin, table in config.plugins.tables.items():
                if plugin in types:
                    _convert(table, types[plugin], f"plugins.{plugin}")
        return config

    def _parse(self, parts: Sequence[str], words: Sequence[str], key: str) -> Any:
        type_ = self._type_of(parts, key)
        if type_ is None:
            return words[0] if len(words) == 1 and _toml_value(words[0]) is None else _toml_or_words(words)
        given: Any = list(words)
        if _is_list(type_):
            if len(words) == 1:
                given = [part.strip() for part in words[0].strip("[] ").split(",") if part.strip(" \"'")]
                given = [part.strip("\"'") for part in given]
        elif len(words) != 1:
            raise ConfigurationError(f"{key} takes one value.")
        else:
            given = words[0]
        try:
            return msgspec.to_builtins(msgspec.convert(given, type_, strict=False))
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"{key}: {explain_invalid(error)}.") from error

    def _type_of(self, parts: Sequence[str], key: str) -> Any:
        """The type of the setting; None if only a plugin that is not installed would know."""
        section, *rest = parts
        type_: type[msgspec.Struct] | None
        if section == "plugins" and len(rest) > 1:
            type_ = self._plugin_types().get(rest[0])
            if type_ is None:
                return None
            rest = rest[1:]
        else:
            type_ = PluginSettings if section == "plugins" else SECTIONS.get(section)
        fields = {} if type_ is None else {f.name: f.type for f in msgspec.structs.fields(type_)}
        if not rest or rest[0] not in fields or rest == ["tables"]:
            raise NotFoundError(_unknown(key, {setting.key: setting for setting in self.settings()}))
        return fields[rest[0]] if len(rest) == 1 else None


def explain_setting(type_: type[msgspec.Struct], name: str) -> str:
    """What the docstring of a settings type says of one of its fields."""
    document = inspect.getdoc(type_) or ""
    found = re.search(rf":param {name}: (.*?)(?=\n:param|\Z)", document, re.DOTALL)
    text = " ".join(found[1].split()) if found else name.removesuffix("_s").replace("_", " ").capitalize()
    if name.endswith("_s") and "second" not in text:
        text = text.rstrip(".") + ", seconds"
    return text.replace("``", "`")


def _split(key: str) -> list[str]:
    parts = key.split(".")
    if len(parts) < 2 or not all(_KEY_PART.fullmatch(part) for part in parts):
        raise NotFoundError(f"There is no setting {key!r}: a key is section.name, such as node.name.")
    return parts


def _unknown(key: str, known: Mapping[str, Setting]) -> str:
    return f"There is no setting {key!r}.{nearest(key, known)}"


def _convert(table: Mapping[str, Any], type_: type[msgspec.Struct], name: str) -> Any:
    try:
        return msgspec.convert(table, type_, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"[{name}]: {explain_invalid(error)}.") from error


def _is_list(type_: Any) -> bool:
    origin = get_origin(type_)
    if origin in (list, tuple, set, frozenset):
        return True
    return any(_is_list(argument) for argument in get_args(type_) if not isinstance(argument, msgspec.Meta))


def _toml_value(text: str) -> Any:
    try:
        return tomlkit.value(text).unwrap()
    except (tomlkit.exceptions.ParseError, tomlkit.exceptions.UnexpectedCharError, ValueError):
        return None


def _toml_or_words(words: Sequence[str]) -> Any:
    return _toml_value(words[0]) if len(words) == 1 else list(words)
