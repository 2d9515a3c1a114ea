"""The wheels hold what they should, and agree about versions."""

from __future__ import annotations

import email
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MEMBERS = [ROOT, *sorted(ROOT.glob("plugins/*")), *sorted(ROOT.glob("packages/*"))]


def project(member: Path) -> dict[str, object]:
    """Return the `[project]` table of a distribution."""
    table: dict[str, object] = tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def read_wheel(wheels: Path, member: Path) -> tuple[list[str], Message]:
    """Return the names of the files in a distribution's wheel, and its metadata."""
    name = str(project(member)["name"]).replace("-", "_")
    (path,) = wheels.glob(f"{name}-[0-9]*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (metadata,) = [entry for entry in names if entry.endswith(".dist-info/METADATA")]
        return names, email.message_from_bytes(wheel.read(metadata))


@pytest.mark.parametrize("member", MEMBERS, ids=lambda path: "core" if path == ROOT else path.name)
def test_a_wheel_holds_its_sources_types_and_licence(wheels: Path, member: Path) -> None:
    names, metadata = read_wheel(wheels, member)
    sources = {path.relative_to(member / "src").as_posix() for path in member.glob("src/**/*.py")}
    packages = {path.parent.relative_to(member / "src").as_posix() for path in member.glob("src/*/__init__.py")}
    assert sources <= set(names)
    assert {f"{package}/py.typed" for package in packages} <= set(names)
    assert [name for name in names if name.split("/")[0] == "tests"] == []
    assert metadata["License-Expression"] == "MIT"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_all_distributions_have_one_version_licence_and_python() -> None:
    projects = [project(member) for member in MEMBERS]
    assert len({str(each["version"]) for each in projects}) == 1
    assert {each["requires-python"] for each in projects} == {">=3.11"}
    assert len({(member / "LICENSE").read_bytes() for member in MEMBERS}) == 1


def test_the_meta_distribution_installs_every_other(wheels: Path) -> None:
    _, metadata = read_wheel(wheels, ROOT / "packages" / "sdnet")
    required = {text.split("~=")[0] for text in metadata.get_all("Requires-Dist", [])}
    assert required == {str(project(member)["name"]) for member in MEMBERS} - {"sdnet"}
