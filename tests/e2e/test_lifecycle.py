"""A node starts, runs once, says what is wrong, and stops."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sdnet_core.daemon.client import ApiClient

STOP_DEADLINE_S = 8.0  # less than what a node allows itself before it leaves the hard way
"""A node stops in less than a second; the rest is for a loaded machine."""


def ended(process_id: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return True
    return text.rpartition(") ")[2].startswith("Z")


def test_start_status_stop(node: Any) -> None:
    not_running = node.run("status", expect=3)
    assert "No node is running" in not_running.stderr
    assert not_running.stdout == ""

    started = node.run("start")
    shown = node.json("status")
    assert shown["peer_id"] in started.stdout
    assert shown["fingerprint"]["words"] in started.stdout
    assert shown["name"] == node.name
    assert shown["storage"]["protection"] == "unprotected"
    assert shown["pid"] == node.pid
    assert all(address.startswith("/ip4/127.0.0.1/tcp/") for address in shown["addresses"])
    assert shown["addresses"]
    as_text = node.run("status").stdout
    for expected in (shown["peer_id"], shown["fingerprint"]["hex"], "unprotected (key", *shown["addresses"]):
        assert expected in as_text
    assert node.json("devices") == []

    twice = node.run("start", expect=1)
    assert "already running" in twice.stderr
    assert str(shown["pid"]) in twice.stderr
    assert "Traceback" not in twice.stderr
    assert node.json("status")["pid"] == shown["pid"]

    node.run("stop")
    assert node.pid is None
    assert ended(shown["pid"])
    assert not node.socket.exists()
    assert node.run("stop", expect=3).stdout == ""

    again = node.json("start")
    assert again["peer_id"] == shown["peer_id"]
    node.socket.unlink()  # it stops also when its local API is dead
    node.run("stop")
    assert ended(again["pid"])


def test_what_lies_on_disk_is_private(running: Any) -> None:
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600
    for directory in (running.socket.parent, running.data, running.log_file.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
    assert stat.S_IMODE(running.log_file.stat().st_mode) == 0o600
    wide = [path for path in running.data.rglob("*") if stat.S_IMODE(path.lstat().st_mode) & 0o077]
    assert wide == []


def test_no_core_dumps(running: Any) -> None:
    assert resource.prlimit(running.pid, resource.RLIMIT_CORE)[0] == 0


@pytest.fixture
def unseeing(make_node: Any) -> Any:
    """A node, not started, that never sees the nodes of other tests."""
    return make_node("device", SDNET_DISCOVERY_MDNS="false")


def test_a_stop_does_not_wait_for_event_streams(unseeing: Any) -> None:
    node = unseeing
    node.start()
    follower = node.popen("events", "--follow", "--json")
    config = node.config
    # This one never reads: a server that waits for it to take the end of its stream would hang.
    with closing(socket.socket(socket.AF_UNIX)) as deaf:
        deaf.connect(str(config.paths.socket))
        deaf.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with ApiClient(config).stream("/events") as events:
            begin = time.monotonic()
            ApiClient(config).post("/stop")
            assert list(events) == []
            node.wait_until(lambda: node.pid is None, "the node has stopped", timeout_s=STOP_DEADLINE_S)
            assert time.monotonic() - begin < STOP_DEADLINE_S
    _, errors = follower.communicate(timeout=30)
    assert follower.returncode in (0, 3), errors  # 3: it came too late to connect
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it_cleanly(unseeing: Any, number: signal.Signals) -> None:
    node = unseeing
    pid = node.start()["pid"]
    with ApiClient(node.config).stream("/events") as events:
        begin = time.monotonic()
        os.kill(pid, number)
        assert list(events) == []
        node.wait_until(lambda: ended(pid), "the node has stopped", timeout_s=STOP_DEADLINE_S)
        assert time.monotonic() - begin < STOP_DEADLINE_S
    assert not node.socket.exists()
    assert node.log().splitlines()[-1].endswith("stopped")
    assert "Traceback" not in node.log().partition("ready")[2]


@contextmanager
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with a node."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.communicate()


def test_it_starts_again_after_a_kill_and_a_stop_spares_who_has_its_process_id_now(node: Any) -> None:
    before = node.start()
    node.kill9()
    assert node.socket.exists()  # the kill left it behind
    assert "No node is running" in node.run("status", expect=3).stderr
    with stranger() as other:  # that has got the process id which the killed one has left in its lock
        node.config.paths.lock_file.write_text(f"{other.pid}\n")
        node.run("stop", expect=3)
        assert other.poll() is None
    after = node.start()
    assert after["peer_id"] == before["peer_id"]
    assert after["pid"] != before["pid"]
    node.stop()


def test_restart(node: Any) -> None:
    first = node.json("restart")
    second = node.json("restart")
    assert first["peer_id"] == second["peer_id"]
    assert first["pid"] != second["pid"]
    assert ended(first["pid"])
    node.stop()


def test_a_very_long_home(make_node: Any, tmp_path: Path) -> None:
    # Longer than a socket's path may be (107 bytes), as long as SQLite takes (512).
    home = tmp_path.joinpath(*["a-rather-long-directory-name-"] * 10)
    home.mkdir(parents=True)
    node = make_node("deep", home=home)
    assert 300 < len(str(node.data)) < 480
    node.start()
    assert node.json("status")["data"] == str(node.data)
    node.stop()


def test_a_damaged_store_is_not_replaced(node: Any) -> None:
    before = node.start()["peer_id"]
    node.stop()
    sealed = [path for path in (node.data / "network").iterdir() if path.name.startswith("identity")]
    assert sealed
    kept = {path: path.read_bytes() for path in sealed}
    for path in sealed:
        path.write_bytes(b"\0" * 64)
    failed = node.run("start", expect=1)
    assert "identity" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert node.pid is None
    for path, data in kept.items():
        path.write_bytes(data)
    assert node.start()["peer_id"] == before
    node.stop()


def test_a_port_in_use_is_named(node: Any) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        node.environ["SDNET_NODE_LISTEN"] = f"/ip4/127.0.0.1/tcp/{port}"
        failed = node.run("start", expect=1)
    assert str(port) in failed.stderr
    assert "Traceback" not in failed.stderr
    assert node.pid is None


def test_a_wrong_setting_is_a_usage_error(node: Any) -> None:
    node.environ["SDNET_CONNECTIONS_MAX_CONNECTIONS"] = "many"
    failed = node.run("start", expect=2)
    assert "SDNET_CONNECTIONS_MAX_CONNECTIONS" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_two_instances_in_one_home(running: Any) -> None:
    first = running.json("status")
    second = json.loads(running.run("--instance", "second", "start", "--json").stdout)
    assert first["peer_id"] != second["peer_id"]
    assert running.json("status")["instance"] == "default"
    running.run("--instance", "second", "stop")
    assert running.json("status")["peer_id"] == first["peer_id"]


def test_foreground(node: Any) -> None:
    process = node.popen("start", "--foreground", "--json")
    assert process.stdout is not None
    try:
        shown = json.loads(process.stdout.readline())
        assert shown["peer_id"] == node.json("status")["peer_id"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert re.search(r"INFO .* ready", errors)
    assert node.pid is None


def test_loopback_tcp_where_there_are_no_unix_sockets(node: Any) -> None:
    node.start("--tcp")
    endpoint = node.socket.with_suffix(".json")
    assert not node.socket.exists()
    assert stat.S_IMODE(endpoint.stat().st_mode) == 0o600
    assert node.json("status")["name"] == node.name
    found = json.loads(endpoint.read_text())
    endpoint.write_text(json.dumps({**found, "token": "wrong"}))
    refused = node.run("status", expect=1)
    assert "token" in refused.stderr
    endpoint.write_text(json.dumps(found))
    node.stop()
    assert not endpoint.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(running: Any) -> None:
    script = "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
    script += "try: socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
    script += "except PermissionError: sys.exit(77)"
    done = subprocess.run([sys.executable, "-c", script, str(running.socket)], check=False, timeout=30)
    assert done.returncode == 77
    listing = "import os, sys; os.setgid(65534); os.setuid(65534)\ntry: os.listdir(sys.argv[1])\n"
    listing += "except PermissionError: sys.exit(77)"
    done = subprocess.run([sys.executable, "-c", listing, str(running.data)], check=False, timeout=30)
    assert done.returncode == 77
