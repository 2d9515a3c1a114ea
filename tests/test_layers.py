"""Imports only go down the layers, and each library stays where the architecture puts it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "src" / "sdnet_core"
PLUGINS = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").exists())
PYTEST_PLUGIN = CORE / "testing" / "pytest_plugin.py"  # only pytest imports it
MAX_LINES = 500

# From the bottom to the top; what shares a line is one layer, whose parts may import each other.
LAYERS = [
    {"deprecations", "errors", "wording"},
    {"ciphers", "clock", "config", "event_bus", "events", "identity", "log_context", "log_lines", "metrics", "wire"},
    {"storage"},
    {"swarm"},
    {"discovery"},
    {"session"},
    {"devices"},
    {"protocols"},
    {
        "approvals",
        "audit",
        "commands",
        "context",
        "core",
        "core_devices",
        "core_factories",
        "core_meeting",
        "core_messages",
        "core_protection",
        "core_stores",
        "core_streams",
        "core_watch",
        "hookspecs",
        "node_plugins",
        "node_store",
        "pairings",
        "plugin_runner",
        "plugin_tasks",
        "plugins",
        "preview",
        "public_node",
        "settings_file",
    },
    {"bridge", "coordinator", "hosting", "testing"},
    {"daemon"},
    {"cli"},
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Only these may know py-libp2p and the event loop that it needs.
TRIO_PLACES = re.compile(
    r"swarm/(?!abc\.py|memory\.py|__init__\.py).*|discovery/dht\.py|testing/clock\.py|daemon/(server|__main__)\.py"
)
PUBLIC_TO_PLUGINS = {
    "sdnet_core",
    "sdnet_core.cli.kit",
    "sdnet_core.errors",
    "sdnet_core.events",
    "sdnet_core.wire",
}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, or name of a module, and where it is imported."""

    module: str
    name: str | None
    path: Path
    line: int

    def __str__(self) -> str:
        what = self.module if self.name is None else f"{self.module}:{self.name}"
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {what}"


def python_files(*directories: Path) -> list[Path]:
    """List the Python files below some directories."""
    return sorted(path for directory in directories for path in directory.rglob("*.py"))


def package_of(path: Path) -> list[str]:
    """Return the parts of the name of the package that a file is in; empty for a file in no package."""
    parts = path.relative_to(ROOT).parts
    return list(parts[parts.index("src") + 1 : -1]) if "src" in parts else []


def imports(path: Path) -> Iterator[Import]:
    """Yield every import of a file, those inside functions and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, path, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield Import(module, alias.name, path, node.lineno)


def core_part(found: Import) -> str | None:
    """Return the module or package of the core that is imported, such as "swarm"; "" for its root."""
    parts = found.module.split(".")
    if parts[0] != "sdnet_core":
        return None
    if len(parts) > 1:
        return parts[1]
    return found.name if found.name in RANKS else ""


def owner(path: Path) -> str:
    """Return the module or package of the core that a file is or belongs to."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def core_imports() -> list[Import]:
    """List every import of the core."""
    return [found for path in python_files(CORE) for found in imports(path)]


def outside(allowed: re.Pattern[str], *libraries: str) -> list[str]:
    """List the imports of some libraries, in the core and the plugins, from files that may not know them."""
    sources = [path / "src" for path in PLUGINS]
    return [
        str(found)
        for path in python_files(CORE, *sources)
        for found in imports(path)
        if any(f"{found.module}.".startswith(f"{library}.") for library in libraries)
        and not (path.is_relative_to(CORE) and allowed.fullmatch(path.relative_to(CORE).as_posix()))
    ]


def test_every_part_of_the_core_has_its_layer() -> None:
    parts = {owner(path) for path in python_files(CORE)} - {"__init__", "__main__"}
    assert parts - RANKS.keys() == set()


def test_imports_only_go_down() -> None:
    found = [found for found in core_imports() if owner(found.path) in RANKS]
    assert len(found) > 5
    wrong = [
        str(item)
        for item in found
        if (part := core_part(item)) and RANKS.get(part, len(LAYERS)) > RANKS[owner(item.path)]
    ]
    assert wrong == []


def test_the_core_does_not_import_its_own_front() -> None:
    # The root package re-exports every layer, so importing it from inside would hide an import that goes up.
    allowed = {"__init__", "__main__", "cli", "daemon", "testing"}
    wrong = [str(item) for item in core_imports() if core_part(item) == "" and owner(item.path) not in allowed]
    assert wrong == []


def test_trio_and_libp2p_stay_in_their_places() -> None:
    assert outside(TRIO_PLACES, "trio", "libp2p", "trio_typing", "trio_websocket", "hypercorn.trio") == []


def test_asyncio_stays_in_the_bridge() -> None:
    assert outside(re.compile(r"bridge\.py"), "asyncio") == []


def test_platform_directories_stay_in_the_configuration() -> None:
    assert outside(re.compile(r"config\.py"), "platformdirs") == []


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_imports_public_names_only(plugin: Path) -> None:
    import sdnet_core

    public = set(getattr(sdnet_core, "__all__", ()))
    wrong = []
    for path in python_files(plugin):
        in_tests = path.is_relative_to(plugin / "tests")
        for found in imports(path):
            package = found.module.split(".")[0]
            if package == "sdnet_core":
                # "from sdnet_core import errors" and "import sdnet_core.errors" name the same module.
                whole = f"{found.module}.{found.name}"
                module = whole if whole in PUBLIC_TO_PLUGINS else found.module
                allowed = module in PUBLIC_TO_PLUGINS or (in_tests and module.startswith("sdnet_core.testing"))
                if module == "sdnet_core" and found.name is not None:
                    allowed = found.name in public or (in_tests and found.name == "testing")
            elif package.startswith("sdnet_") and package != plugin.name and not in_tests:
                allowed = found.module == package
            else:
                allowed = True
            if not allowed:
                wrong.append(str(found))
    assert wrong == []


def test_the_core_knows_no_plugin_by_name() -> None:
    names = [path.name.removeprefix("sdnet_") for path in PLUGINS]
    assert names
    spellings = [rf"sdnet[_-]{name.replace('_', '[_-]')}\b" for name in names]
    spellings += [rf"/sdnet/{name.replace('_', '-')}\b" for name in names]
    spellings += [r"\bspacedrop\b", r"\bfile_transfer\b"]  # the other names are ordinary words of the field
    pattern = re.compile("|".join(spellings), re.IGNORECASE)
    wrong = [
        f"{path.relative_to(ROOT)}:{number} says {match[0]}"
        for path in python_files(CORE)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := pattern.search(line))
    ]
    assert wrong == []


@pytest.mark.parametrize("member", [ROOT, *PLUGINS], ids=lambda path: path.name if path != ROOT else "core")
def test_every_imported_library_is_declared(member: Path) -> None:
    project = tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^\w.-]", text, maxsplit=1)[0].lower() for text in project["dependencies"]}
    ours = {path.name: [path.name.replace("_", "-")] for path in [CORE, *PLUGINS]}
    distributions = {**packages_distributions(), **ours}
    undeclared = {
        f"{found} of {distributions.get(package, ['an unknown distribution'])}"
        for path in python_files(member / "src")
        if path != PYTEST_PLUGIN
        for found in imports(path)
        if (package := found.module.split(".")[0]) not in sys.stdlib_module_names
        and package.replace("_", "-") != project["name"]
        and not {name.lower().replace("_", "-") for name in distributions.get(package, [])} & declared
    }
    assert undeclared == set()


def test_no_file_is_too_long() -> None:
    files = python_files(ROOT / "src", ROOT / "plugins", ROOT / "tests")
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_LINES} == {}
