"""What the doctor finds, each on a machine that has it."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from sdnet_core.daemon.doctor import Doctor, Finding, Health

LOOPBACK = {"SDNET_DISCOVERY_MDNS_INTERFACES": "127.0.0.1"}


def examine(home: Path, **variables: str) -> list[Finding]:
    return list(Doctor(None, environ={"SDNET_HOME": str(home), **LOOPBACK, **variables}).examine())


def of(findings: list[Finding], subject: str) -> Finding:
    return next(f for f in findings if f.subject == subject)


def test_a_machine_that_is_well(tmp_path: Path) -> None:
    found = examine(tmp_path)
    assert [f for f in found if f.health is Health.FAILED] == []
    assert of(found, "node").advice == "sdnet start"
    assert of(found, "plugins").health is Health.OK


def test_multicast_is_tried_for_real(tmp_path: Path) -> None:
    found = of(examine(tmp_path), "multicast")
    assert found.health is Health.OK
    assert "heard on" in found.detail
    assert of(examine(tmp_path, SDNET_DISCOVERY_MDNS="false"), "multicast").health is Health.NOTE


def test_a_wrong_setting_is_said_first_and_alone(tmp_path: Path) -> None:
    (found,) = examine(tmp_path, SDNET_CONNECTIONS_MAX_CONNECTIONS="many")
    assert (found.subject, found.health) == ("settings", Health.FAILED)
    assert "SDNET_CONNECTIONS_MAX_CONNECTIONS" in found.detail


def test_a_port_that_somebody_has(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = of(examine(tmp_path, SDNET_NODE_LISTEN=f"/ip4/127.0.0.1/tcp/{port}"), "ports")
    assert found.health is Health.FAILED
    assert f"TCP port {port} cannot be taken" in found.detail


def test_a_folder_that_others_can_read(tmp_path: Path) -> None:
    data = tmp_path / "default" / "data"
    data.mkdir(parents=True)
    data.chmod(0o755)
    found = of(examine(tmp_path), "folders")
    assert found.health is Health.WARNING
    assert found.advice == f"chmod 700 {data}"


def test_a_clock_that_went_back(tmp_path: Path) -> None:
    data = tmp_path / "default" / "data"
    data.mkdir(parents=True, mode=0o700)
    ahead = time.time() + 10 * 86_400
    os.utime(data, (ahead, ahead))
    found = of(examine(tmp_path), "clock")
    assert found.health is Health.FAILED
    assert "10 days behind" in found.detail


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdnet_core.daemon.doctor.LOW_SPACE_BYTES", 1 << 60)
    assert of(examine(tmp_path), "disk").health is Health.WARNING
