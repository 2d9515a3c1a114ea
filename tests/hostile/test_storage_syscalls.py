"""The disk fails or is full at each system call of a commit, by ``strace -e inject``: what was there or what should be
is there afterwards, and what the store says is true.

A sample runs by default; all with SDNET_TEST_SYSCALLS=all, as ``nox -s crash_store`` does."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.storage_commit import BEGIN, END, JOBS, NEW, OLD, look

ROOT = Path(__file__).parent.parent.parent
CALLS = (
    "openat",
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "link",
    "linkat",
    "rename",
    "renameat",
    "unlink",
    "ftruncate",
)
SAMPLE = 3
"""Places tried of each commit by default."""
SEED = 20_261_129


def why_not() -> str:
    """Why nothing can be tried here; empty if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    return f"strace does not work here: {done.stderr.strip()[:100]}" if done.returncode else ""


REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


def run(directory: Path, job: str, phase: str, *strace: str) -> str:
    """Run one phase; gives what it printed."""
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    # Calls are counted from the start of the process, and imports are calls: their compiled files are our own and do
    # not change between two commits, whoever else imports the same modules.
    compiled = str(directory.parent / "compiled")
    keep = () if phase == "prepare" else ("-B",)
    done = subprocess.run(
        [*strace, sys.executable, *keep, "-m", "tests.hostile.storage_commit", str(directory), job, phase],
        env={**os.environ, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": compiled},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def places(directory: Path, job: str, trace: Path) -> list[tuple[str, int]]:
    """Every system call of a commit: its name, and which one of that name since the start of the process it is."""
    names = ",".join((*CALLS, "access", "faccessat", "faccessat2"))
    run(directory, job, "commit", "strace", "-f", "-o", str(trace), "-e", f"trace={names}")
    seen: dict[str, int] = {}
    found, inside = [], False
    for line in trace.read_text().splitlines():
        if BEGIN in line:
            inside = True
        elif END in line:
            break
        elif (call := re.match(r"\d+\s+(\w+)\(", line)) and call[1] in CALLS:
            seen[call[1]] = seen.get(call[1], 0) + 1
            if inside:
                found.append((call[1], seen[call[1]]))
    return found


@pytest.mark.parametrize("job", JOBS)
def test_a_failure_at_any_call_of_a_commit(tmp_path: Path, job: str) -> None:
    before = tmp_path / "before"
    run(before, job, "prepare")
    shutil.copytree(before, tmp_path / "whole")
    found = places(tmp_path / "whole", job, tmp_path / "trace")
    after = None if job == "delete" else OLD + NEW if job == "append" else NEW
    assert look(tmp_path / "whole", job) == after
    assert len(found) >= 3
    tries = [(name, number, error) for name, number in found for error in ("EIO", "ENOSPC")]
    if os.environ.get("SDNET_TEST_SYSCALLS") != "all":
        tries = random.Random(f"{SEED} {job}").sample(tries, SAMPLE)
    for name, number, error in tries:
        place = tmp_path / "place"
        shutil.copytree(before, place)
        inject = ("-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={number}")
        said = run(place, job, "commit", "strace", "-f", "-o", str(tmp_path / "trace"), *inject)
        what = f"{name} number {number} with {error}: {said}"
        assert "INJECTED" in (tmp_path / "trace").read_text(), what
        left = look(place, job)
        assert left in (OLD, after), what
        if said == "done":
            assert left == after, what
        else:
            assert said.startswith("failed "), what
            assert str(place) in said or "descriptor" in said, what  # it says where
            if "nothing was changed" in said:
                assert left == OLD, what
        if not (job == "protect" and left == NEW):
            run(place, job, "prepare")  # and the store can be written again
        shutil.rmtree(place)
