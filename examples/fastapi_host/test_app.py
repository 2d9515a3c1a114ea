"""The application under uvicorn, and another device that connects to it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdnet_core.testing import Daemon, paired_daemons

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -r requirements.txt")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -r requirements.txt")


class Application:
    """The application as a process."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, method: str = "GET") -> Any:
        """Ask it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """What it tells as it happens; the first item says that it listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/events")
        for line in connection.getresponse():
            if line.startswith(b": open"):
                yield {"kind": "open"}
            elif line.startswith(b"data: "):
                yield json.loads(line[6:])


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[tuple[Application, Daemon]]:
    """The application, whose node is paired with a daemon; the daemon does not run yet."""
    with paired_daemons(tmp_path, ("fastapi-host", "other")) as (host, other):
        host.stop()
        other.stop()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"]
        environment = {**os.environ, **host.environment}
        process = subprocess.Popen(command, cwd=Path(__file__).parent, env=environment)
        application = Application(port)
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    application.get("/node")
                    break
                except OSError:
                    assert process.poll() is None, "the application has ended"
                    assert time.monotonic() < deadline, "the application does not answer"
                    time.sleep(0.05)
            yield application, other
        finally:
            process.terminate()
            assert process.wait(20) in (0, -15)


def test_devices_are_listed_and_events_come(hosted: tuple[Application, Daemon]) -> None:
    application, other = hosted
    (device,) = application.get("/devices")
    assert (device["name"], device["connected"]) == ("other", False)
    events = application.events()
    assert next(events)["kind"] == "open"
    other.start()
    established = next(event for event in events if event["kind"] == "connection-established")
    assert established["device_name"] == "other"
    assert application.get("/devices")[0]["connected"] is True
    assert 0 < application.get("/devices/other/ping", "POST")["rtt_s"] < 10
    assert "No paired device" in application.get("/devices/nobody/ping", "POST")["detail"]
    # Ends the stream, so that the application can stop.
    events.close()
