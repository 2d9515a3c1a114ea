"""The limit on open files, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="there is no such limit")

SCRIPT = """
import resource, sys
from sdnet_core.daemon.descriptors import allow_connections
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
problem = allow_connections(int(sys.argv[3]))
print(*resource.getrlimit(resource.RLIMIT_NOFILE), problem, sep="|")
"""


@pytest.mark.parametrize(
    ("limits", "connections", "left", "told"),
    [
        ((256, 4096), 50, (612, 4096), ""),
        ((1024, 4096), 50, (1024, 4096), ""),
        ((256, 4096), 1500, (3512, 4096), ""),
        ((256, 4096), 5000, (4096, 4096), "open 4,096 files; 5,000 connections may need 10,512"),
    ],
)
def test_the_limit_is_raised_as_far_as_needed(
    limits: tuple[int, int], connections: int, left: tuple[int, int], told: str
) -> None:
    command = [sys.executable, "-c", SCRIPT, *map(str, (*limits, connections))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    soft, hard, problem = done.stdout.strip().split("|")
    assert (int(soft), int(hard)) == left
    assert told in problem
    assert bool(told) is bool(problem)
