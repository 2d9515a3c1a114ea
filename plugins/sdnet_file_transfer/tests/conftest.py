"""What the tests of the file transfer plugin share."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

Tree = dict[str, bytes | None]


def read_tree(root: Path) -> Tree:
    """Every file below a folder with its contents, every folder with None."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        found[path.relative_to(root).as_posix()] = None if path.is_dir() else path.read_bytes()
    return found


@pytest.fixture
def tree() -> Callable[[Path], Tree]:
    return read_tree


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Let no file grow beyond so many bytes, as on a disk that takes no more."""

    @contextmanager
    def limited(limit: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[[str, Tree], Path]:
    """Write a folder of files; None makes a folder."""

    def make(name: str, contents: Tree) -> Path:
        root = tmp_path / name
        root.mkdir(parents=True)
        for path, data in contents.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if data is None:
                target.mkdir(exist_ok=True)
            else:
                target.write_bytes(data)
                os.utime(target, ns=(1_600_000_000_000_000_001, 1_600_000_000_000_000_001))
        return root

    return make
