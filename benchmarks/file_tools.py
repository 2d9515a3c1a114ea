"""The programs that copy files in a file benchmark: each from one folder of this machine to another, over loopback.

A tool is entered once; ``copy`` is the whole command, from its start to its end. What is missing says so in a sentence.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks.file_processes import Background, Watcher, run
from benchmarks.harness import BenchmarkError
from sdnet_core.testing import paired_daemons

__all__ = ["DELETING", "ENCRYPTED", "TOOLS", "MissingError", "Tool"]

_START_S = 30.0
_COPY_S = 600.0
ENCRYPTED = ("scp", "rsync_ssh", "wormhole", "syncthing", "croc")
"""What copies files or folders by one command, encrypted; tar over ssh is two commands and stands beside them."""

DELETING = ("syncthing",)
"""What deletes what it has copied before it copies again; it also takes many times as long as the others."""


class MissingError(Exception):
    """A tool is not here; the text is the reason, a sentence."""


class Tool(Protocol):
    """What is measured.

    :ivar pids: long-running processes whose CPU time belongs to a copy.
    """

    pids: tuple[int, ...]

    def copy(self, watcher: Watcher, source: Path, target: Path) -> Path:
        """Copy a file or folder into an empty folder.

        :returns: where it is then.
        """


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise MissingError(f"{package} is not installed.")
    return found


def _await_port(port: int, server: Background) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            server.check()
            if time.monotonic() > deadline:
                raise BenchmarkError("A server of a benchmark does not listen.") from None
            time.sleep(0.02)


class _Command:
    """A tool that is one or two commands."""

    def __init__(self, make: Callable[[Path, Path], list[list[str | Path]]], *, pids: tuple[int, ...] = ()) -> None:
        self.pids = pids
        self._make = make

    def copy(self, watcher: Watcher, source: Path, target: Path) -> Path:
        run(watcher, *self._make(source, target))
        return target / source.name


class _Sdnet:
    def __init__(self, sender: Any, downloads: Path, pids: tuple[int, ...]) -> None:
        self.pids = pids
        self._sender = sender
        self._downloads = downloads

    def copy(self, watcher: Watcher, source: Path, target: Path) -> Path:
        command = [Path(sys.executable).with_name("sdnet"), "--instance", self._sender.name]
        run(watcher, [*command, "send", source, "--to", "bob"], environment=self._sender.environment)
        return self._downloads / source.name


@contextmanager
def _sdnet(home: Path) -> Iterator[Tool]:
    downloads = home / "downloads"
    # Programs are compiled once, when they are installed or first used, wherever this environment forbids it.
    environment = {
        "SDNET_NODE_DOWNLOADS": str(downloads),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(home / "compiled"),
    }
    with paired_daemons(home, environment=environment) as (alice, bob):
        alice.run("transfers")  # what the command needs is compiled with it
        pids = tuple(daemon.json("status")["pid"] for daemon in (alice, bob))
        yield _Sdnet(alice, downloads, pids)


@contextmanager
def _ssh(home: Path) -> Iterator[tuple[Path, int]]:
    """An ssh server with keys of its own; gives a client's configuration and the server's id."""
    server, _ = _program("sshd", "openssh-server"), _program("ssh", "openssh-client")
    for name in ("host", "client"):
        key = home / f"key_{name}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=30)
    (home / "authorized").write_bytes((home / "key_client.pub").read_bytes())
    port = _port()
    (home / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/key_host\nAuthorizedKeysFile {home}/authorized\n"
        "StrictModes no\nPasswordAuthentication no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it is, the server that root runs locks itself up
    (home / "ssh_config").write_text(
        f"Host *\n HostName 127.0.0.1\n Port {port}\n IdentityFile {home}/key_client\n IdentitiesOnly yes\n"
        " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n BatchMode yes\n"
    )
    with Background(server, "-D", "-e", "-f", home / "sshd_config", log=home / "sshd.log") as running:
        _await_port(port, running)
        yield home / "ssh_config", running.pid


@contextmanager
def _scp(home: Path) -> Iterator[Tool]:
    program = _program("scp", "openssh-client")
    with _ssh(home) as (config, pid):
        yield _Command(
            lambda source, target: [[program, "-q", "-r", "-F", config, source, f"b:{target}/"]], pids=(pid,)
        )


@contextmanager
def _rsync(home: Path) -> Iterator[Tool]:
    program = _program("rsync", "rsync")
    with _ssh(home) as (config, pid):
        shell = f"ssh -F {shlex.quote(str(config))}"
        yield _Command(lambda source, target: [[program, "-a", "-e", shell, source, f"b:{target}/"]], pids=(pid,))


@contextmanager
def _tar(home: Path) -> Iterator[Tool]:
    _program("tar", "tar")
    with _ssh(home) as (config, pid):

        def pipe(source: Path, target: Path) -> list[list[str | Path]]:
            words = [str(source.parent), source.name, str(config), f"tar -C {shlex.quote(str(target))} -xf -"]
            parent, name, ssh, there = map(shlex.quote, words)
            return [["sh", "-c", f"tar -C {parent} -cf - {name} | ssh -F {ssh} b {there}"]]

        yield _Command(pipe, pids=(pid,))


@contextmanager
def _cp(home: Path) -> Iterator[Tool]:
    yield _Command(lambda source, target: [["cp", "-r", "--reflink=never", source, target]])


@contextmanager
def _raw(home: Path) -> Iterator[Tool]:
    def make(source: Path, target: Path) -> list[list[str | Path]]:
        port = str(_port())
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("raw_copy.py")]
        return [[*command, "receive", port, target], [*command, "send", port, source]]

    yield _Command(make)


@contextmanager
def _wormhole(home: Path) -> Iterator[Tool]:
    bin_ = _wormhole_bin(home)
    port = _port()
    server: list[str | Path] = [bin_ / "twist", "wormhole-mailbox", f"--port=tcp:{port}:interface=127.0.0.1"]
    (home / "mailbox").mkdir()
    server.append(f"--channel-db={home}/mailbox/relay.sqlite")
    server.append(f"--usage-db={home}/mailbox/usage.sqlite")
    with Background(*server, log=home / "mailbox.log") as running:
        _await_port(port, running)

        def make(source: Path, target: Path) -> list[list[str | Path]]:
            code = f"1-{secrets.token_hex(8)}"
            # The relay for what cannot connect directly is never needed here; port 9 refuses.
            program: list[str | Path] = [
                *(bin_ / "wormhole", f"--relay-url=ws://127.0.0.1:{port}/v1", "--transit-helper=tcp:127.0.0.1:9"),
            ]
            hidden = ["--hide-progress"]
            return [
                [*program, "receive", *hidden, "--accept-file", "-o", target / source.name, code],
                [*program, "send", *hidden, "--no-qr", "--code", code, source],
            ]

        yield _Command(make, pids=(running.pid,))


def _wormhole_bin(home: Path) -> Path:
    """Programs of magic-wormhole: the installed ones, or those of an environment made for this run."""
    installed = shutil.which("wormhole"), shutil.which("twist")
    if installed[0] and installed[1] and Path(installed[0]).parent == Path(installed[1]).parent:
        return Path(installed[0]).parent
    made = home / "environment"
    subprocess.run([sys.executable, "-m", "venv", made], check=True, capture_output=True, timeout=120)
    wanted = ["magic-wormhole", "magic-wormhole-mailbox-server"]
    pip = subprocess.run(
        [made / "bin" / "python", "-m", "pip", "install", "-q", *wanted], capture_output=True, check=False, timeout=600
    )
    if pip.returncode or not (made / "bin" / "twist").exists():
        raise MissingError("magic-wormhole is not installed, and could not be from the package index.")
    return made / "bin"


@contextmanager
def _croc(home: Path) -> Iterator[Tool]:
    program = _program("croc", "croc")
    ports = [_port() for _ in range(5)]
    command = [program, "relay", "--host", "127.0.0.1", "--ports", ",".join(map(str, ports))]
    with Background(*command, log=home / "relay.log") as running:
        _await_port(ports[0], running)

        def make(source: Path, target: Path) -> list[list[str | Path]]:
            secret = f"{secrets.randbelow(9000) + 1000}-{secrets.token_hex(8)}"
            base: list[str | Path] = [program, "--relay", f"127.0.0.1:{ports[0]}", "--yes"]
            send: list[str | Path] = ["env", f"CROC_SECRET={secret}", *base, "send", "--no-local", source]
            receive: list[str | Path] = ["env", f"CROC_SECRET={secret}", *base, "--out", target]
            return [send, receive]

        yield _Command(make, pids=(running.pid,))


class _Syncthing:
    """Two instances that share a folder; a copy is from telling the one to look until the other is up to date."""

    def __init__(self, stack: ExitStack, home: Path) -> None:
        program = _program("syncthing", "syncthing")
        self._key = secrets.token_hex(16)
        self._gui = {name: _port() for name in "ab"}
        self._folders = {name: home / f"folder-{name}" for name in "ab"}
        listen = {name: _port() for name in "ab"}
        running = []
        for name in "ab":
            self._folders[name].mkdir()
            command = [program, "serve", "--no-browser", "--no-restart", "--no-default-folder", f"--home={home}/{name}"]
            command += [f"--gui-address=127.0.0.1:{self._gui[name]}", f"--gui-apikey={self._key}"]
            server = Background(*command, log=home / f"{name}.log")
            running.append(stack.enter_context(server))
            _await_port(self._gui[name], server)
        self.pids = tuple(server.pid for server in running)
        ids = {name: self._ask(name, "system/status")["myID"] for name in "ab"}
        for name, other in ("ab", "ba"):
            options = self._ask(name, "config/options")
            options |= {
                "globalAnnounceEnabled": False,
                "localAnnounceEnabled": False,
                "relaysEnabled": False,
                "natEnabled": False,
                "crashReportingEnabled": False,
                "urAccepted": -1,
                "autoUpgradeIntervalH": 0,
                "listenAddresses": [f"tcp://127.0.0.1:{listen[name]}"],
            }
            self._ask(name, "config/options", "PUT", options)
            address = [f"tcp://127.0.0.1:{listen[other]}"]
            self._ask(name, "config/devices", "POST", {"deviceID": ids[other], "addresses": address})
            folder: dict[str, object] = {"id": "bench", "path": str(self._folders[name]), "type": "sendreceive"}
            folder |= {"devices": [{"deviceID": one} for one in ids.values()], "fsWatcherEnabled": False}
            self._ask(name, "config/folders", "POST", folder | {"rescanIntervalS": 0})
        self._until(lambda: self._ask("a", "system/connections")["connections"][ids["b"]]["connected"])
        self._until(lambda: all(self._status(name)["state"] == "idle" for name in "ab"))

    def _ask(self, name: str, path: str, method: str = "GET", body: object = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._gui[name]}/rest/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-API-Key": self._key},
        )
        try:
            with urllib.request.urlopen(request, timeout=_COPY_S) as answer:
                said = answer.read()
        except urllib.error.HTTPError as exc:
            raise BenchmarkError(f"syncthing refuses {path}: {exc.read()[:300].decode(errors='replace')}") from exc
        return json.loads(said) if said.strip() else None

    def _status(self, name: str) -> Any:
        return self._ask(name, "db/status?folder=bench")

    def _until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _COPY_S
        while not reached():
            if time.monotonic() > deadline:
                raise BenchmarkError("syncthing does not finish.")
            time.sleep(0.05)

    def _look(self) -> None:
        """Have the one look, and wait until the other has the same."""
        self._ask("a", "db/scan?folder=bench", "POST")
        files = self._status("a")["localFiles"]

        def same() -> bool:
            status = self._status("b")
            return bool(status["state"] == "idle" and not status["needTotalItems"] and status["localFiles"] == files)

        self._until(same)

    def copy(self, watcher: Watcher, source: Path, target: Path) -> Path:
        self._look()
        return self._folders["b"] / source.name

    def prepare(self, source: Path) -> None:
        """Put the source where it is looked for, without a copy; what was there before goes at both sides."""
        for old in self._folders["a"].iterdir():
            if old.name != ".stfolder":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        self._look()
        if source.is_dir():
            shutil.copytree(source, self._folders["a"] / source.name, copy_function=os.link)
        else:
            os.link(source, self._folders["a"] / source.name)


@contextmanager
def _syncthing(home: Path) -> Iterator[Tool]:
    with ExitStack() as stack:
        yield _Syncthing(stack, home)


TOOLS: dict[str, Callable[[Path], Any]] = {
    "sdnet": _sdnet,
    "scp": _scp,
    "rsync_ssh": _rsync,
    "tar_ssh": _tar,
    "wormhole": _wormhole,
    "syncthing": _syncthing,
    "croc": _croc,
    "cp": _cp,
    "raw": _raw,
}
