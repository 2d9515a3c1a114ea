"""Writes a new plugin from the template beside this module."""

from __future__ import annotations

import keyword
import re
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from ..errors import ConflictError, InvalidRequestError, StorageError

__all__ = ["render_plugin", "write_plugin"]

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_MAX_NAME = 32
_SUFFIX = ".tmpl"
_TAKEN = frozenset({"core", "session"})
"""`sdnet_core` is the core's own package, ``/sdnet/session/`` its own protocol."""


def write_plugin(name: str, directory: Path, description: str | None = None) -> tuple[Path, list[PurePosixPath]]:
    """Write a new plugin's distribution.

    :param directory: where its folder ``sdnet-<name>`` goes.
    :returns: the folder, and the files in it.
    :raises InvalidRequestError: the name cannot be one.
    :raises ConflictError: the folder is there and holds something.
    :raises StorageError: it cannot be written.
    """
    files = render_plugin(name, description)
    folder = directory / f"sdnet-{name.replace('_', '-')}"
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConflictError(f"{folder} is there already, and not empty.")
        for path, text in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(f"{error.filename or folder} cannot be written: {error.strerror}.") from error
    return folder, list(files)


def render_plugin(name: str, description: str | None = None) -> dict[PurePosixPath, str]:
    """Fill in the template.

    :returns: the text of each file, by its path below the new folder.
    :raises InvalidRequestError: the name cannot be one.
    """
    from .main import core_commands

    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise InvalidRequestError(
            f"{name!r} cannot be a plugin's name: a lower-case letter, then up to {_MAX_NAME - 1} lower-case letters, "
            "digits and single underscores."
        )
    hyphened = name.replace("_", "-")
    if hyphened in core_commands() or name in _TAKEN or keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise InvalidRequestError(f"{name!r} cannot be a plugin's name: sdnet or Python uses it already.")
    if description is None:
        description = f"{name.replace('_', ' ').capitalize()} between paired devices: a plugin for sdnet."
    if not description.isprintable() or set(description) & set('"\\'):
        raise InvalidRequestError("The description is one line without quotation marks and backslashes.")
    major, minor, *_ = metadata.version("sdnet-core").split(".")
    words = {
        "name": name,
        "Name": "".join(part.capitalize() for part in name.split("_")),
        "command": hyphened,
        "core": f">={major}.{minor},<{major}.{int(minor) + 1}",
        "description": description,
        "distribution": f"sdnet-{hyphened}",
        "prefix": hyphened,
        "protocol": hyphened,
    }
    root = resources.files(__package__) / "plugin_template"
    files = {}
    for path, source in sorted(_files(root, PurePosixPath())):
        place = PurePosixPath(_fill(str(path).removesuffix(_SUFFIX), words))
        files[place] = _fill(source.read_text(encoding="utf-8"), words)
    return files


def _files(folder: Traversable, below: PurePosixPath) -> list[tuple[PurePosixPath, Traversable]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _files(entry, below / entry.name)
        elif entry.name.endswith(_SUFFIX):
            found.append((below / entry.name, entry))
    return found


def _fill(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@(\w+)@", lambda match: words[match[1]], text)
