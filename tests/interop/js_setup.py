"""Install the packages of the js-libp2p peer that the interoperability tests talk to.

Run as a script it does that, or says why it cannot and ends with status 1. Only the standard library is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["PEER", "UnavailableError", "prepare"]

DIRECTORY = Path(__file__).parent / "js"
PEER = DIRECTORY / "peer.mjs"
_LOCK = DIRECTORY / "package-lock.json"
_STAMP = DIRECTORY / "node_modules" / ".sdnet-lock.sha256"
OLDEST_NODE = 18
# What js-libp2p takes for granted and these releases have behind flags.
_NODE_18_FLAGS = ("--experimental-global-customevent", "--experimental-global-webcrypto")
INSTALL_TIMEOUT_S = 180


class UnavailableError(Exception):
    """The peer cannot be run on this machine; the text says why."""


def prepare() -> tuple[str, ...]:
    """Make sure that the peer can be run.

    :returns: the command that runs ``node``.
    :raises UnavailableError: it is missing or too old, or the packages are missing and cannot be installed.
    """
    node = shutil.which("node")
    if node is None:
        raise UnavailableError(f"there is no node on the PATH (version {OLDEST_NODE} or newer is needed)")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    major = re.match(r"v(\d+)\.", version)
    if major is None or int(major[1]) < OLDEST_NODE:
        raise UnavailableError(f"node {version or 'here'} is too old: version {OLDEST_NODE} or newer is needed")
    with _LOCK.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes that start together would install over each other
        wanted = hashlib.sha256(lock.read()).hexdigest()
        if not _STAMP.exists() or _STAMP.read_text(encoding="ascii") != wanted:
            _install()
            _STAMP.write_text(wanted, encoding="ascii")
    return (node, *_NODE_18_FLAGS) if int(major[1]) < 20 else (node,)


def _install() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UnavailableError(f"there is no npm on the PATH to install the packages of {_LOCK.parent.name}/ with")
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        result = subprocess.run(
            command,
            cwd=DIRECTORY,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            env={**os.environ, "npm_config_update_notifier": "false"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"npm ci did not end within {INSTALL_TIMEOUT_S} s") from None
    if result.returncode:
        last = (result.stderr.strip() or f"status {result.returncode}").splitlines()[0]
        raise UnavailableError(f"npm ci failed (is the network there?): {last}")


if __name__ == "__main__":
    try:
        prepare()
    except UnavailableError as reason:
        sys.exit(f"js-libp2p peer: {reason}")
