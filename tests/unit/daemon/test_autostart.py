"""What the system is told to start at login: definitions as each system reads them, and the commands it is given."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sdnet_core.config import load_config
from sdnet_core.daemon.autostart import AutoStart, LaunchAgent, SystemdUnit, WindowsTask
from sdnet_core.errors import NetworkingError, NotFoundError

WAYS = [SystemdUnit, LaunchAgent, WindowsTask]
Answer = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]


class System:
    """Stands for the system's service manager: notes what it is asked, and answers as told."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.fails: str | None = None
        self.prints = ""

    def __call__(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(list(words))
        if self.fails is not None and self.fails in words:
            return subprocess.CompletedProcess(words, 1, "", "Access denied\n")
        return subprocess.CompletedProcess(words, 0, self.prints, "")


def make(way: type[AutoStart], home: Path, system: System, instance: str = "default") -> AutoStart:
    environ = {"SDNET_HOME": str(home / "it's 100% $mine")}
    config = load_config(instance, environ=environ)
    return way(config, environ=environ, home=home, run=system)


@pytest.mark.parametrize("way", WAYS)
def test_install_state_uninstall(way: type[AutoStart], tmp_path: Path) -> None:
    system = System()
    service = make(way, tmp_path, system)
    assert not service.state().installed
    with pytest.raises(NotFoundError, match="No service of instance default is installed"):
        service.uninstall()
    service.install()
    assert service.file.read_bytes()
    assert service.state().installed
    service.uninstall()
    assert not service.file.exists()
    assert not service.state().installed
    assert {words[0] for words in system.asked} <= {"systemctl", "launchctl", "schtasks"}


@pytest.mark.parametrize(
    ("way", "word"), [(SystemdUnit, "enable"), (LaunchAgent, "bootstrap"), (WindowsTask, "/Create")]
)
def test_what_the_system_refuses_is_said(way: type[AutoStart], word: str, tmp_path: Path) -> None:
    system = System()
    system.fails = word
    with pytest.raises(NetworkingError, match=r"failed: Access denied\.$"):
        make(way, tmp_path, system).install()
    assert not make(way, tmp_path, system).file.exists()


def test_instances_have_services_of_their_own(tmp_path: Path) -> None:
    for way in WAYS:
        first, second = (make(way, tmp_path, System(), instance) for instance in ("default", "work"))
        assert first.file != second.file
        assert "work" in second.command
        assert "--foreground" in second.command


def test_without_start_nothing_is_started(tmp_path: Path) -> None:
    system = System()
    make(SystemdUnit, tmp_path, system).install(start=False)
    assert system.asked == [
        ["systemctl", "--user", "daemon-reload"],
        ["systemctl", "--user", "enable", "sdnet.service"],
    ]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    service = make(SystemdUnit, tmp_path, System())
    service.install()
    done = subprocess.run(
        ["systemd-analyze", "--user", "--man=no", "verify", str(service.file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_agent_is_a_property_list_with_the_words_as_they_are(tmp_path: Path) -> None:
    service = make(LaunchAgent, tmp_path, System())
    service.install()
    found = plistlib.loads(service.file.read_bytes())
    assert found["ProgramArguments"] == service.command
    assert found["EnvironmentVariables"] == {"SDNET_HOME": str(tmp_path / "it's 100% $mine")}
    assert found["KeepAlive"] == {"SuccessfulExit": False}


def test_the_task_is_xml_with_the_program_in_it(tmp_path: Path) -> None:
    service = make(WindowsTask, tmp_path, System())
    service.install()
    task = ElementTree.fromstring(service.file.read_bytes())
    namespace = {"t": "http://schemas.microsoft.com/windows/2004/02/mit/task"}
    assert task.findtext("t:Actions/t:Exec/t:Command", namespaces=namespace) == sys.executable
    assert "--foreground" in (task.findtext("t:Actions/t:Exec/t:Arguments", namespaces=namespace) or "")
