"""Whole networks in virtual time; `nox -s simulate` runs more of them, and the planted bugs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdnet_core.testing.simulation import run_seed

SLOW = pytest.mark.skipif("SDNET_SIMULATE" not in os.environ, reason="takes minutes: nox -s simulate runs it")


def bugs() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("planted_bugs", Path(__file__).with_name("bugs.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.BUGS
    return found


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_nothing_breaks_whatever_happens(first: int) -> None:
    found = {seed: outcome.violations for seed in range(first, first + 20) if (outcome := run_seed(seed)).violations}
    assert found == {}


@pytest.mark.parametrize("seed", [109, 188])
def test_what_was_found_once_is_not_found_again(seed: int) -> None:
    # A sender crashed between an answer and its removal from the outbox, and the receiver had been told to forget.
    assert run_seed(seed).violations == ()


def test_a_crowd_settles() -> None:
    outcome = run_seed(4, nodes=20)
    assert outcome.violations == ()
    assert sum('"connection-established"' in line for line in outcome.trace) > 40


def test_the_same_seed_gives_the_same_events_in_any_process_and_beside_any_others() -> None:
    command = [sys.executable, "-m", "sdnet_core.testing.simulation", "--seed", "4", "--seeds", "2", "--trace"]
    runs = [
        subprocess.run(
            [*command, "--jobs", jobs],
            env={**os.environ, "PYTHONHASHSEED": jobs},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for jobs in ("1", "2")
    ]
    # Seeds that run at the same time end in any order.
    traces = [sorted(run.stdout.rpartition("2 seeds")[0].splitlines()) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert traces[0] == traces[1]
    assert len(traces[0]) > 200
    text = run_seed(17).text
    assert run_seed(17).text == text
    assert run_seed(18).text != text


@SLOW
@pytest.mark.parametrize("bug", ["no_deduplication", "no_fsync", "no_rekey", "swapped_keys"])
def test_a_planted_bug_is_caught(bug: str) -> None:
    def catch() -> int:
        for seed in range(200):
            with bugs()[bug]():
                if run_seed(seed).violations:
                    return seed
        return -1

    assert catch() >= 0


@SLOW
@pytest.mark.parametrize("seed", range(3))
def test_fifty_devices_settle(seed: int) -> None:
    assert run_seed(seed, nodes=50).violations == ()
