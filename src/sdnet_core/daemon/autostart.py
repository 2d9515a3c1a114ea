"""Has the operating system start a node when its user logs in: systemd, launchd, or Windows' task scheduler."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from xml.sax.saxutils import escape

from ..config import Config
from ..errors import NetworkingError, NotFoundError, StorageError

__all__ = ["AutoStart", "LaunchAgent", "ServiceState", "SystemdUnit", "WindowsTask", "find_autostart"]

COMMAND_TIMEOUT_S = 30.0


class RunCommand(Protocol):
    """Runs a program of the system."""

    def __call__(self, words: Sequence[str], /) -> subprocess.CompletedProcess[str]: ...


def run_command(words: Sequence[str], /) -> subprocess.CompletedProcess[str]:
    """Run a program and take what it prints.

    :raises NetworkingError: it is not there, or takes too long.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise NetworkingError(f"{words[0]} is not installed here.") from error
    except subprocess.TimeoutExpired as error:
        raise NetworkingError(f"{' '.join(words)} did not end within {COMMAND_TIMEOUT_S:g} s.") from error


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What the system knows of the service.

    :param file: where its definition is, or would be.
    :param active: whether it runs now, in the system's own word; empty if the system cannot say.
    """

    kind: str
    file: Path
    installed: bool
    active: str = ""


class AutoStart(ABC):
    """One system's way to start the node of one instance.

    :param environ: the variables that the node is to start with are taken from here.
    """

    kind: str

    def __init__(
        self, config: Config, *, environ: Mapping[str, str], home: Path, run: RunCommand = run_command
    ) -> None:
        self._config = config
        self._environ = environ
        self._home = home
        self._run = run

    @property
    @abstractmethod
    def file(self) -> Path:
        """Where the definition is kept."""

    @abstractmethod
    def definition(self) -> str:
        """The definition's text."""

    def install(self, *, start: bool = True) -> None:
        """Write the definition and have the system take it up.

        :param start: start the node now, too.
        :raises StorageError: the definition cannot be written.
        :raises NetworkingError: the system does not take it; says what it said. A new definition is gone again then.
        """
        known = self.file.exists()
        self._write()
        try:
            self._take_up(start)
        except NetworkingError:
            if not known:
                self.file.unlink(missing_ok=True)
            raise

    @abstractmethod
    def _take_up(self, start: bool) -> None:
        """Have the system read the definition."""

    @abstractmethod
    def uninstall(self) -> None:
        """Stop the node if the system runs it, and take the definition away.

        :raises NotFoundError: there is none.
        """

    @abstractmethod
    def state(self) -> ServiceState:
        """Whether it is installed, and whether it runs."""

    @property
    def command(self) -> list[str]:
        """What the system runs: the node in the foreground."""
        return [
            sys.executable,
            "-P",
            "-m",
            "sdnet_core.cli",
            "--instance",
            self._config.instance,
            "start",
            "--foreground",
        ]

    @property
    def variables(self) -> dict[str, str]:
        """The variables that say where the node's things are; the system starts it without the ones of this shell."""
        return {name: self._environ[name] for name in ("SDNET_HOME",) if self._environ.get(name)}

    def _write(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_name(f".{self.file.name}.new")
            temporary.write_text(self.definition(), encoding=self._encoding)
            temporary.replace(self.file)
        except OSError as error:
            raise StorageError(f"{self.file} cannot be written: {error.strerror}.") from error

    _encoding = "utf-8"

    def _require_installed(self) -> None:
        if not self.file.exists():
            raise NotFoundError(f"No service of instance {self._config.instance} is installed ({self.file}).")

    def _do(self, *words: str) -> str:
        done = self._run(words)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise NetworkingError(f"{' '.join(words)} failed: {said[-1] if said else f'status {done.returncode}'}.")
        return done.stdout


class SystemdUnit(AutoStart):
    """A unit of the user's own systemd; see systemd.service(5) and systemd.exec(5)."""

    kind = "systemd"

    @property
    def unit(self) -> str:
        """Its name."""
        instance = self._config.instance
        return "sdnet.service" if instance == "default" else f"sdnet-{instance}.service"

    @property
    def file(self) -> Path:
        base = self._environ.get("XDG_CONFIG_HOME")
        return (Path(base) if base else self._home / ".config") / "systemd" / "user" / self.unit

    def definition(self) -> str:
        environment = "".join(f"Environment={_systemd_word(f'{k}={v}')}\n" for k, v in self.variables.items())
        return (
            "[Unit]\n"
            f"Description=sdnet node ({self._config.instance})\n"
            "Documentation=man:sdnet(1)\n"
            "StartLimitIntervalSec=300\n"
            "StartLimitBurst=10\n"
            "\n"
            "[Service]\n"
            "Type=exec\n"
            f"ExecStart={' '.join(map(_systemd_word, self.command))}\n"
            f"{environment}"
            "Restart=on-failure\n"
            # A wrong setting or another node on the same data does not get better by trying again.
            "RestartPreventExitStatus=2 4\n"
            "RestartSec=5\n"
            "TimeoutStopSec=20\n"
            "LimitCORE=0\n"
            "NoNewPrivileges=yes\n"
            "UMask=0077\n"
            "\n"
            "[Install]\n"
            "WantedBy=default.target\n"
        )

    def _take_up(self, start: bool) -> None:
        self._do("systemctl", "--user", "daemon-reload")
        self._do("systemctl", "--user", "enable", *(["--now"] if start else []), self.unit)

    def uninstall(self) -> None:
        self._require_installed()
        try:
            self._do("systemctl", "--user", "disable", "--now", self.unit)
        finally:
            self.file.unlink(missing_ok=True)
        self._do("systemctl", "--user", "daemon-reload")

    def state(self) -> ServiceState:
        installed = self.file.exists()
        active = ""
        if installed:
            try:
                active = self._run(("systemctl", "--user", "is-active", self.unit)).stdout.strip()
            except NetworkingError:
                active = ""
        return ServiceState(self.kind, self.file, installed, active)


class LaunchAgent(AutoStart):
    """An agent of launchd; see launchd.plist(5)."""

    kind = "launchd"

    @property
    def label(self) -> str:
        """Its name."""
        return f"org.sdnet.{self._config.instance}"

    @property
    def file(self) -> Path:
        return self._home / "Library" / "LaunchAgents" / f"{self.label}.plist"

    def definition(self) -> str:
        return plistlib.dumps(
            {
                "Label": self.label,
                "ProgramArguments": self.command,
                "EnvironmentVariables": self.variables,
                "RunAtLoad": True,
                "KeepAlive": {"SuccessfulExit": False},
                "ThrottleInterval": 10,
                "ProcessType": "Background",
                "Umask": 0o077,
            }
        ).decode()

    @property
    def _domain(self) -> str:
        return f"gui/{os.getuid()}"

    def _take_up(self, start: bool) -> None:
        if start:
            self._run(("launchctl", "bootout", f"{self._domain}/{self.label}"))  # an older one, if there is one
            self._do("launchctl", "bootstrap", self._domain, str(self.file))

    def uninstall(self) -> None:
        self._require_installed()
        self._run(("launchctl", "bootout", f"{self._domain}/{self.label}"))
        self.file.unlink(missing_ok=True)

    def state(self) -> ServiceState:
        installed = self.file.exists()
        active = ""
        if installed:
            try:
                done = self._run(("launchctl", "print", f"{self._domain}/{self.label}"))
                active = "inactive" if done.returncode else "active" if "state = running" in done.stdout else "waiting"
            except NetworkingError:
                active = ""
        return ServiceState(self.kind, self.file, installed, active)


class WindowsTask(AutoStart):
    """A task that starts at log-on; see schtasks and the Task Scheduler schema."""

    kind = "task-scheduler"
    _encoding = "utf-16"

    @property
    def name(self) -> str:
        """Its name."""
        return f"sdnet {self._config.instance}"

    @property
    def file(self) -> Path:
        return self._config.paths.config_file.parent / "sdnet-task.xml"

    def definition(self) -> str:
        program, *arguments = self.command
        return (
            '<?xml version="1.0" encoding="UTF-16"?>\n'
            '<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">\n'
            "  <Triggers><LogonTrigger><Enabled>true</Enabled></LogonTrigger></Triggers>\n"
            "  <Settings>\n"
            "    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>\n"
            "    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>\n"
            "    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>\n"
            "    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>\n"
            "    <RestartOnFailure><Interval>PT1M</Interval><Count>10</Count></RestartOnFailure>\n"
            "  </Settings>\n"
            '  <Actions Context="Author"><Exec>\n'
            f"    <Command>{escape(program)}</Command>\n"
            f"    <Arguments>{escape(subprocess.list2cmdline(arguments))}</Arguments>\n"
            "  </Exec></Actions>\n"
            "</Task>\n"
        )

    def _take_up(self, start: bool) -> None:
        self._do("schtasks", "/Create", "/F", "/TN", self.name, "/XML", str(self.file))
        if start:
            self._do("schtasks", "/Run", "/TN", self.name)

    def uninstall(self) -> None:
        self._require_installed()
        self._run(("schtasks", "/End", "/TN", self.name))
        self._do("schtasks", "/Delete", "/F", "/TN", self.name)
        self.file.unlink(missing_ok=True)

    def state(self) -> ServiceState:
        installed = self.file.exists()
        active = ""
        if installed:
            try:
                done = self._run(("schtasks", "/Query", "/TN", self.name, "/FO", "LIST"))
                states = (line for line in done.stdout.splitlines() if line.startswith("Status:"))
                active = next(states, "").partition(":")[2].strip()
            except NetworkingError:
                active = ""
        return ServiceState(self.kind, self.file, installed, active)


_WAYS: dict[str, type[AutoStart]] = {"systemd": SystemdUnit, "launchd": LaunchAgent, "task-scheduler": WindowsTask}


def find_autostart(
    config: Config, *, kind: str | None = None, environ: Mapping[str, str], run: RunCommand = run_command
) -> AutoStart:
    """This system's way, or the one that is named.

    :raises NetworkingError: this system has none that we know.
    """
    if kind is None:
        if sys.platform == "darwin":
            kind = "launchd"
        elif sys.platform == "win32":
            kind = "task-scheduler"
        elif shutil.which("systemctl"):
            kind = "systemd"
        else:
            raise NetworkingError(
                "There is neither systemd, launchd nor a task scheduler here. Have your own service manager run: "
                "sdnet start --foreground"
            )
    return _WAYS[kind](config, environ=environ, home=Path.home(), run=run)


def _systemd_word(word: str) -> str:
    """Quote a word of a command line or an assignment; see "Quoting" and "Specifiers" in systemd.syntax(7)."""
    word = word.replace("%", "%%").replace("$", "$$")
    if word and not any(c in word for c in " \t\"'\\;"):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
