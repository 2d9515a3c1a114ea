"""Finds the command that an installed plugin declares.

As `importlib.metadata.entry_points` does (https://packaging.python.org/specifications/entry-points/), which takes
30 ms where this takes 2: it reads all that every distribution says of itself, and needs the modules for e-mail and zip
archives for that. What is unusual is left to it: then nothing is found here.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["Declared", "declared_command"]

_COMMANDS_GROUP = "sdnet.commands.v1"
_PLUGINS_GROUP = "sdnet.plugins."


@dataclass(frozen=True, slots=True)
class Declared:
    """A command of a plugin.

    :param value: where it is defined, as ``module:attribute``.
    :param plugins: the plugins of its distribution.
    """

    value: str
    plugins: frozenset[str]

    def load(self) -> Any:
        """Import it."""
        module, _, attribute = self.value.partition(":")
        return getattr(import_module(module), attribute)


def declared_command(name: str) -> Declared | None:
    """The command of a name; None if it is not that of exactly one distribution that lies in a folder."""
    found: Declared | None = None
    for folder in dict.fromkeys(sys.path):
        try:
            entries = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in entries:
            if not entry.endswith(".dist-info"):
                continue
            try:
                with open(os.path.join(folder, entry, "entry_points.txt"), encoding="utf-8") as file:
                    text = file.read()
            except (OSError, ValueError):
                continue
            if _COMMANDS_GROUP not in text:
                continue
            groups = _groups(text)
            value = groups.get(_COMMANDS_GROUP, {}).get(name)
            if value is None:
                continue
            if found is not None:
                return None
            plugins = [group.keys() for title, group in groups.items() if title.startswith(_PLUGINS_GROUP)]
            found = Declared(value, frozenset().union(*plugins))
    return found


def _groups(text: str) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    group: dict[str, str] = {}
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = groups.setdefault(line[1:-1].strip(), {})
        elif line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            group[name.strip()] = value.strip()
    return groups
