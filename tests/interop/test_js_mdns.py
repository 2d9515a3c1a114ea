"""Our mDNS and js-libp2p's, in a network namespace whose only interface is loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNSHARE = ["unshare", "--net"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["unshare", "-Urn"]
INSIDE = 'ip link set lo up && exec "$@"'


def can_have_a_network_of_its_own() -> bool:
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "ip"))):
        return False
    return subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_have_a_network_of_its_own(), reason="network namespaces cannot be made here")
@pytest.mark.parametrize("first", ["we", "js"])
def test_we_and_js_find_and_reach_each_other(node_command: tuple[str, ...], first: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [*UNSHARE, "sh", "-c", INSIDE, "sh", sys.executable, "-m", "tests.interop.mdns_nodes"]
    result = subprocess.run(
        [*command, first, *node_command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["we found"]["addresses"] == seen["real"]["js"]
    assert seen["js found"]["addresses"] == seen["real"]["ours"]
    # js-libp2p asks every second here; ten by default.
    assert seen["we found"]["after_s"] < 5
    assert seen["js found"]["after_s"] < 5
    assert seen["ping after we dialled"] < 5000
    assert seen["ping after js dialled"] < 5000
