"""What the tests of the core and of the plugins share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# A loaded machine must not fail a property test by its clock, and CI must not fail by chance.
hypothesis.settings.register_profile("dev", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Started in the background of a shell, a process ignores Ctrl-C, and so do those it starts: tests of Ctrl-C would hang.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A file stays on one worker, so one that takes long and begins last would keep a whole run waiting.
LONGEST_FIRST = (
    "tests/simulation/",
    "tests/packaging/",
    "plugins/sdnet_sync/tests/test_daemons.py",
    "plugins/sdnet_file_transfer/tests/test_faults.py",
    "tests/e2e/",
    "tests/interop/",
    "tests/hostile/",
    "tests/integration/",
)

TRIO_ONLY = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each `@pytest.mark.anyio` test on both event loops."""
    backend: str = request.param
    return backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest; within a file nothing changes its place."""
    items.sort(key=lambda item: next((n for n, path in enumerate(LONGEST_FIRST) if item.nodeid.startswith(path)), 99))


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Run tests marked `libp2p`, by themselves, their class or their module, on trio only."""
    if not collector.istestfunction(obj, name):
        return
    own = {mark.name for mark in getattr(obj, "pytestmark", [])}
    if "libp2p" in own or collector.get_closest_marker("libp2p"):
        TRIO_ONLY(obj)


class SmallDisks:
    """File systems of their own with little room, for the length of a test."""

    def __init__(self) -> None:
        self._mounted: list[Path] = []

    def mount(self, place: Path, size: int) -> Path:
        """Mount one with ``size`` bytes, or skip the test where that cannot be done."""
        if not sys.platform.startswith("linux") or os.geteuid() != 0:
            pytest.skip("Mounting a small disk needs root on Linux.")
        place.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "sdnet-test", str(place)]
        mounting = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if mounting.returncode != 0:
            pytest.skip(f"A small disk cannot be mounted here: {mounting.stderr.strip()}")
        self._mounted.append(place)
        return place

    def fill(self, place: Path) -> Path:
        """Leave not one byte; gives the file that takes them, to be removed when there is to be room again."""
        ballast = place / "ballast"
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        return ballast

    def unmount(self) -> None:
        """Unmount all."""
        while self._mounted:
            subprocess.run(["umount", "-l", str(self._mounted.pop())], check=True, timeout=60)


@pytest.fixture
def small_disks() -> Iterator[SmallDisks]:
    """Mounts and fills small disks; unmounts them at the end."""
    disks = SmallDisks()
    try:
        yield disks
    finally:
        disks.unmount()
