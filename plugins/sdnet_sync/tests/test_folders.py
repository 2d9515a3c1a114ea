"""Folders between whole nodes in one process: locations, mirrors, and what must never happen to files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sdnet_core.testing import LinkedNodes
from sdnet_sync import Library, Role
from sdnet_sync.folders.entries import Location

from .nodes import eventually, nodes, service, shared

pytestmark = pytest.mark.anyio

QUICK: Mapping[str, Any] = {"plugins": {"sync": {"relay_delay_s": 0.03, "rescan_s": 3600}}}


def write(root: Path, path: str, data: bytes | str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)


def tree(root: Path) -> dict[str, bytes]:
    """All files of a folder, apart from what is ours."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] != ".sdnet"
    }


async def same(*roots: Path, within_s: float = 30.0) -> dict[str, bytes]:
    """Wait until folders hold the same files."""

    async def equal() -> bool:
        first, *others = map(tree, roots)
        return all(other == first for other in others)

    await eventually(equal, within_s=within_s)
    return tree(roots[0])


async def holds(root: Path, wanted: Mapping[str, bytes | str], *, within_s: float = 30.0) -> None:
    expected = {path: data.encode() if isinstance(data, str) else data for path, data in wanted.items()}
    try:
        await eventually(lambda: _is(root, expected), within_s=within_s)
    except TimeoutError:
        assert tree(root) == expected
        raise


async def _is(root: Path, expected: Mapping[str, bytes]) -> bool:
    return tree(root) == expected


@asynccontextmanager
async def mirrored(
    tmp_path: Path, count: int = 2, *, files: Mapping[str, bytes | str] | None = None, role: Role = Role.WRITER
) -> AsyncIterator[tuple[LinkedNodes, list[Library], list[Path], Location]]:
    """Nodes with a library, each with a folder of one mirror; the first one's holds files already."""
    roots = [tmp_path / f"folder{number}" for number in range(count)]
    for root in roots:
        root.mkdir()
    for path, data in (files or {}).items():
        write(roots[0], path, data)
    async with nodes(count, settings=QUICK) as linked:
        cores = list(linked)
        libraries = await shared(cores[0], *cores[1:], role=role)
        location = await service(cores[0]).folders.mirror(libraries[0], roots[0], name="Photos")
        for core, library, root in zip(cores[1:], libraries[1:], roots[1:], strict=True):
            await eventually(lambda library=library: _has_location(library))
            await service(core).folders.mirror(library, root)
        yield linked, libraries, roots, location


async def _has_location(library: Library) -> bool:
    return await library.count("sdnet.location") > 0


async def test_a_mirror_has_the_same_files_everywhere(tmp_path: Path) -> None:
    big = os.urandom(700_000)
    files = {"a.txt": "one", "sub/deep/b.txt": "two", "empty": "", "big.bin": big, "copy.bin": big}
    async with mirrored(tmp_path, files=files) as (_, _, (a, b), _):
        await holds(b, files)
        assert (b / "a.txt").stat().st_mtime_ns == (a / "a.txt").stat().st_mtime_ns
        write(b, "sub/from-b.txt", "three")
        await holds(a, {**files, "sub/from-b.txt": "three"})
        (a / "sub/deep/b.txt").write_text("two, changed")
        await holds(b, {**files, "sub/from-b.txt": "three", "sub/deep/b.txt": "two, changed"})
        (a / "copy.bin").unlink()
        (b / "a.txt").rename(b / "sub/renamed.txt")
        del files["copy.bin"], files["a.txt"]
        files |= {"sub/from-b.txt": "three", "sub/deep/b.txt": "two, changed", "sub/renamed.txt": "one"}
        await holds(a, files)
        await holds(b, files)


