"""kill -9 at every step of a store's writes, and at random moments."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import anyio
import pytest

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.errors import StorageError
from sdnet_core.storage import KeyFile, SecureStorage, Unlock, Vault

SEED = 20_240_607
KILLS = int(os.environ.get("SDNET_TEST_STORE_KILLS", "30"))
"""At random moments, and as many at seeded points; ``nox -s crash_store`` takes 200."""
MAX_STEPS = 300
SCRIPT = Path(__file__).with_name("storage_writer.py")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The writer's own functions, so that the tests read what it writes in the same way."""
    spec = importlib.util.spec_from_file_location("storage_writer", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Writers:
    """Runs writers, one after another, and tells what each acknowledged before it died."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, directory: Path, job: str, step: int, kill_after_s: float | None = None) -> tuple[list[str], int]:
        """Run one writer; with ``kill_after_s``, kill it that long after its first acknowledgement."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{directory} {job} {step}\n")
        self._process.stdin.flush()
        acknowledged: list[str] = []
        killer: threading.Timer | None = None
        pid = int(self._line().removeprefix("pid "))
        while not (line := self._line()).startswith("end "):
            acknowledged.append(line)
            if kill_after_s is not None and killer is None:  # it makes progress, however slow the disk
                killer = threading.Timer(kill_after_s, os.kill, (pid, signal.SIGKILL))
                killer.start()
        if killer is not None:
            killer.cancel()
            killer.join()
        return acknowledged, int(line.removeprefix("end "))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the writers' parent died"
        return line.strip()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Writers(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def load(storage: SecureStorage, name: str) -> bytes | None:
    return anyio.run(storage.load, name)


def no_rubbish(directory: Path) -> bool:
    return not list(directory.rglob(".tmp-*"))


def check_written(script: ModuleType, directory: Path, floor: list[int]) -> list[int]:
    """The store opens, and each name holds, whole, the version last known of it or the one under way.

    :param floor: that version for each name.
    :returns: the versions found.
    """
    storage = script.storage_of(directory, script.open_vault(directory))
    numbers = []
    for name, known in zip(script.NAMES, floor, strict=True):
        data = load(storage, name)
        number = 0 if data is None else int(data.split(b" ")[0])
        assert data is None or data == script.contents(number)
        assert number in (known, max(floor) + 1)
        numbers.append(number)
    assert numbers[0] >= numbers[1]
    assert storage.recovered == []  # a crash alone never needs the generation before
    assert no_rubbish(directory)
    return numbers


def test_killed_at_every_step_of_creating_and_writing(writers: Writers, script: ModuleType, tmp_path: Path) -> None:
    for step in range(1, MAX_STEPS):
        directory = tmp_path / str(step)
        acknowledged, code = writers.run(directory, "write", step)
        check_written(script, directory, [int(acknowledged[-1]) if acknowledged else 0] * 2)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert step > 40
    assert acknowledged == ["1", "2"]


def test_killed_at_random_moments_over_and_over(writers: Writers, script: ModuleType, tmp_path: Path) -> None:
    moments = random.Random(SEED)
    for _ in range(KILLS):
        acknowledged, code = writers.run(tmp_path, "write", 0, kill_after_s=moments.uniform(0, 0.08))
        assert code == -signal.SIGKILL
        versions = check_written(script, tmp_path, [int(acknowledged[-1])] * 2)
    assert versions[1] >= KILLS


def test_killed_at_seeded_points_over_and_over(writers: Writers, script: ModuleType, tmp_path: Path) -> None:
    """One store that lives through all of it: after each kill it holds the last state or the one before."""
    points = random.Random(SEED)
    versions = [0, 0]
    for number in range(KILLS):
        step = points.randint(1, 60)
        acknowledged, code = writers.run(tmp_path, "write", step)
        floor = [int(acknowledged[-1])] * 2 if acknowledged else versions
        versions = check_written(script, tmp_path, floor)
        assert code in (0, -signal.SIGKILL), f"kill {number} at step {step}"
    assert versions[1] > KILLS / 3


def test_killed_at_every_step_of_replacing_for_good_and_deleting(
    writers: Writers, script: ModuleType, tmp_path: Path
) -> None:
    for step in range(1, MAX_STEPS):
        directory = tmp_path / str(step)
        storage = script.storage_of(directory, script.open_vault(directory))
        for name in script.NAMES:
            for data in (b"first", b"second"):
                anyio.run(storage.store, name, data)
        acknowledged, code = writers.run(directory, "replace", step)
        storage = script.storage_of(directory, script.open_vault(directory))
        replaced, deleted = (load(storage, name) for name in script.NAMES)
        assert replaced in ([b"revoked"] if "replaced" in acknowledged else [b"second", b"revoked"])
        assert deleted in ([None] if "deleted" in acknowledged else [b"second", None])
        assert storage.recovered == []
        if "replaced" in acknowledged:  # whatever is damaged now, the old state stays away
            (directory / "network" / script.NAMES[0]).write_bytes(b"")
            assert load(storage, script.NAMES[0]) == b"revoked"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert step > 15
    assert acknowledged == ["replaced", "deleted"]


@pytest.mark.parametrize("job", ["protect", "change", "unprotect"])
def test_killed_at_every_step_of_changing_the_secret(
    writers: Writers, script: ModuleType, tmp_path: Path, job: str
) -> None:
    """Whenever it dies the old secret or the new one opens the vault, and after that opening the other one nothing."""
    clock, randomness = SystemClock(), SystemRandomness()
    before = {"protect": KeyFile(), "change": script.OTHER, "unprotect": script.PASSPHRASE}[job]
    after = KeyFile() if job == "unprotect" else script.PASSPHRASE
    opened_with = []
    for step in range(1, MAX_STEPS):
        directory = tmp_path / str(step)
        key = Vault.create(directory, before, clock, randomness).subkey("x")
        _, code = writers.run(directory, job, step)
        unlock = next(secret for secret in (before, after) if opens(directory, secret))
        vault = Vault.open(directory, unlock, clock, randomness)
        assert vault.subkey("x") == key
        assert vault.recovered == []
        # Opening has finished or undone the change: both generations are equal, no useless key file lies about.
        assert (directory / "vault").read_bytes() == (directory / "vault.prev").read_bytes()
        assert (directory / "vault.key").exists() is (unlock == KeyFile())
        assert not opens(directory, after if unlock == before else before)
        assert no_rubbish(directory)
        opened_with.append(unlock)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert opened_with[-1] == after
    assert opened_with == sorted(opened_with, key=lambda secret: secret == after)  # once it counts it counts
    assert step > 10


def opens(directory: Path, secret: Unlock) -> bool:
    """Whether a secret opens the vault there."""
    try:
        Vault.check(directory, secret)
        return True
    except StorageError:
        return False


def test_what_the_steps_rest_on_would_be_noticed(writers: Writers, script: ModuleType, tmp_path: Path) -> None:
    """The check itself bites: a store whose file is torn, as a write in place would leave it, fails it."""
    writers.run(tmp_path, "write", MAX_STEPS)
    path = tmp_path / "network" / script.NAMES[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises((AssertionError, StorageError)):
        check_written(script, tmp_path, [2, 2])
