"""The pins are complete, name only third-party packages, and give away no machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "requirements").glob("*.txt"))
ENTRY = re.compile(r"([a-z0-9][a-z0-9._-]*)==([^\s;]+)(?: ; [^\\]+?)?((?: --hash=sha256:[0-9a-f]{64})+)")


def entries(path: Path) -> dict[str, str]:
    """Return the pinned version of each package; every line must be a pin with its hashes, or a comment."""
    text = re.sub(r"\s*\\\n\s+", " ", path.read_text(encoding="utf-8"))
    pinned = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = ENTRY.fullmatch(line)
        assert match, f"{path.name}: not a pin with hashes: {line[:120]}"
        pinned[match[1]] = match[2]
    return pinned


def declared(*members: Path) -> set[str]:
    """Return the normalised names of the packages that some distributions declare."""
    tables = [tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8")) for member in members]
    texts = [text for table in tables for text in table["project"]["dependencies"]]
    return {re.split(r"[^\w.-]", text, maxsplit=1)[0].lower().replace("_", "-") for text in texts}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_line_is_a_pin_with_hashes(path: Path) -> None:
    pinned = entries(path)
    assert pinned
    assert [name for name in pinned if name == "sdnet" or name.startswith("sdnet-")] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_host_and_no_place_is_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\w+://\S+|--(?:index|find-links|extra-index)\S*|(?:^|[\s=@])/\S+", text) == []


def test_everything_declared_is_pinned() -> None:
    members = [ROOT, *ROOT.glob("plugins/*")]
    missing = declared(*members) - entries(ROOT / "requirements" / "runtime.txt").keys()
    assert {name for name in missing if not name.startswith("sdnet-")} == set()


def test_the_files_agree_with_each_other() -> None:
    everything = entries(ROOT / "requirements" / "dev.txt")
    for path in FILES:
        assert entries(path).items() <= everything.items(), path.name


def test_the_build_backend_is_the_pinned_one() -> None:
    pinned = entries(ROOT / "requirements" / "build.txt")["hatchling"]
    for path in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("packages/*/*.toml")]:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        assert table["build-system"]["requires"] == [f"hatchling=={pinned}"], path
