"""kill -9 at every step of a revocation: nobody is told that a device is revoked that comes back later."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.revoker import DEVICE

ROOT = Path(__file__).parent.parent.parent
MAX_STEPS = 150


class Revoker:
    """The process that forks nodes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "hostile" / "revoker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        )

    def do(self, home: Path, job: str, step: int = 0) -> tuple[list[str], int]:
        """Have a job done; gives what was told and the exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{home} {job} {step}\n")
        self._process.stdin.flush()
        told = []
        while not (line := self._process.stdout.readline()).startswith("end "):
            assert line, "the process has died"
            told.append(line.strip())
        return told, int(line.split()[1])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture(scope="module")
def revoker() -> Iterator[Revoker]:
    started = Revoker()
    yield started
    started.close()


@pytest.fixture
def paired(revoker: Revoker, tmp_path: Path) -> Path:
    """The home of a node with one paired device."""
    home = tmp_path / "paired"
    assert revoker.do(home, "pair") == (["paired"], 0)
    return home


@pytest.mark.parametrize(("job", "ends_as", "stride"), [("revoke", "revoked", 1), ("forget", "unknown", 3)])
def test_a_kill_at_any_step_leaves_a_device_as_it_was_or_out(
    revoker: Revoker, paired: Path, tmp_path: Path, job: str, ends_as: str, stride: int
) -> None:
    record = Path("default", "data", "network", "devices", str(DEVICE.id))
    before = (paired / record).read_bytes()
    outcomes = []
    for step in range(1, MAX_STEPS, stride):
        home = tmp_path / f"step{step}"
        shutil.copytree(paired, home)
        told, code = revoker.do(home, job, step)
        (found,), _ = revoker.do(home, "look")
        trust = found.split()[0]
        if told == ["done"]:
            assert trust == ends_as, f"step {step}"
            # Not even with the record as it was.
            (home / record).write_bytes(before)
            ((again,), _) = revoker.do(home, "look")
            assert again == f"{ends_as} 1", f"step {step}"
            ((again,), _) = revoker.do(home, "look")
            assert again == f"{ends_as} 0", f"step {step}"
        else:
            assert trust in ("trusted", ends_as), f"step {step}"
            assert code == -signal.SIGKILL
        outcomes.append((trust, told))
        shutil.rmtree(home)
        if code == 0:
            break
    else:
        pytest.fail("the process never reached the end")
    assert ("trusted", []) in outcomes  # killed before it counted
    assert (ends_as, []) in outcomes  # killed after it counted and before anybody was told
    assert outcomes[-1] == (ends_as, ["done"])
    trusts = [trust for trust, _ in outcomes]
    assert trusts == sorted(trusts, key=lambda trust: trust != "trusted")  # once it counts it counts
