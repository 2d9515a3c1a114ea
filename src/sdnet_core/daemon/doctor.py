"""Looks at what a node needs (settings, folders, clock, network, plugins, devices) and says what to do."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import anyio

from ..config import Config, load_config
from ..discovery.interfaces import Interface, local_interfaces, multicast_interfaces
from ..discovery.mdns_link import MDNS_PORT, group_address, open_socket
from ..errors import ConfigurationError, NetworkingError, NotRunningError
from .client import ApiClient

__all__ = ["Doctor", "Finding", "Health"]

LOW_SPACE_BYTES = 100 << 20
MULTICAST_WAIT_S = 1.0
COMMAND_TIMEOUT_S = 5.0
MAX_CLOCK_LEAD_S = 86_400.0
"""Files this much newer than the clock say that the clock is behind."""
# RFC 6762: a question for _p2p._udp.local, as any libp2p node asks it.
_QUERY = b"\0\0\0\0\0\1\0\0\0\0\0\0" + b"\4_p2p\4_udp\5local\0" + b"\0\x0c\0\1"


class Health(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    NOTE = "note"
    """Good to know; nothing is wrong."""
    WARNING = "warning"
    """Something does not work as well as it could."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look found.

    :param advice: what to do about it; empty if nothing.
    """

    subject: str
    health: Health
    detail: str
    advice: str = ""


class Doctor:
    """Makes all checks, one after the other. Changes nothing.

    :param instance: which node's; the default one when None.
    """

    def __init__(self, instance: str | None, *, environ: Mapping[str, str]) -> None:
        self._instance = instance
        self._environ = environ
        self._status: dict[str, Any] | None = None

    def examine(self) -> Iterator[Finding]:
        """Look at everything; a check that fails itself is a finding too."""
        try:
            config = load_config(self._instance, environ=self._environ)
        except ConfigurationError as error:
            yield Finding(
                subject="settings",
                health=Health.FAILED,
                detail=error.detail,
                advice="Correct it with: sdnet config edit",
            )
            return
        file = config.paths.config_file
        yield _ok("settings", str(file) if file.exists() else "the defaults hold")
        checks: tuple[tuple[str, Callable[[Config], Iterator[Finding]]], ...] = (
            ("folders", self._folders),
            ("disk", self._disk),
            ("clock", self._clock),
            ("node", self._node),
            ("ports", self._ports),
            ("network", self._network),
            ("multicast", self._multicast),
            ("firewall", self._firewall),
            ("plugins", self._plugins),
            ("devices", self._devices),
        )
        for subject, check in checks:
            try:
                yield from check(config)
            except (OSError, NetworkingError) as error:
                detail = error.detail if isinstance(error, NetworkingError) else str(error)
                yield Finding(subject=subject, health=Health.FAILED, detail=detail)

    def _folders(self, config: Config) -> Iterator[Finding]:
        wrong = False
        for path in (config.paths.data, config.paths.logs, config.paths.runtime, config.paths.config_file.parent):
            if not path.exists():
                continue
            found = path.stat()
            if hasattr(os, "getuid") and found.st_uid != os.getuid():
                wrong = True
                yield _failed("folders", f"{path} belongs to another user", f"chown -R {os.getuid()} {path}")
            elif not os.access(path, os.W_OK | os.X_OK):
                wrong = True
                yield _failed("folders", f"{path} cannot be written", f"chmod u+rwx {path}")
            elif stat.S_IMODE(found.st_mode) & 0o077 and path == config.paths.data:
                wrong = True
                yield _warning("folders", f"{path} can be read by other users", f"chmod 700 {path}")
        downloads = config.downloads_dir
        if downloads.exists() and not os.access(downloads, os.W_OK | os.X_OK):
            wrong = True
            yield _failed("folders", f"{downloads} cannot be written", "sdnet config set node.downloads FOLDER")
        if not wrong:
            yield _ok("folders", str(config.paths.data))

    def _disk(self, config: Config) -> Iterator[Finding]:
        for name, path in (("data", config.paths.data), ("downloads", config.downloads_dir)):
            free = shutil.disk_usage(_existing(path)).free
            if free < LOW_SPACE_BYTES:
                yield _warning("disk", f"{free >> 20} MiB are free for {name} ({path})", "Make room on that disk.")
            else:
                yield _ok("disk", f"{free / 2**30:.1f} GiB are free for {name}")

    def _clock(self, config: Config) -> Iterator[Finding]:
        now = time.time()
        data = config.paths.data
        newest = max((p.stat().st_mtime for p in (data, *data.glob("*"))), default=0.0) if data.exists() else 0.0
        advice = "Set the clock, best by network time: timedatectl set-ntp true"
        if newest - now > MAX_CLOCK_LEAD_S:
            days = (newest - now) / 86_400
            yield _failed("clock", f"the clock is {days:.0f} days behind what was stored last", advice)
            return
        synchronized = _output("timedatectl", "show", "--property=NTPSynchronized", "--value")
        if synchronized == "no":
            yield _warning("clock", "the clock is not kept by network time", advice)
        else:
            yield _ok("clock", time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now)))

    def _node(self, config: Config) -> Iterator[Finding]:
        client = ApiClient(config, timeout_s=COMMAND_TIMEOUT_S)
        try:
            self._status = client.get("/status")
            versions = client.get("/version")
        except NotRunningError:
            yield Finding(subject="node", health=Health.NOTE, detail="no node is running", advice="sdnet start")
            return
        from importlib import metadata

        installed = metadata.version("sdnet-core")
        if versions["version"] != installed:
            yield _warning("node", f"it is sdnet {versions['version']}, installed is {installed}", "sdnet restart")
        else:
            yield _ok("node", f"running as process {self._status['pid']}, its API answers")
        for text in self._status["storage"]["recovered"]:
            yield _warning("storage", text, "sdnet audit shows what else happened then.")

    def _ports(self, config: Config) -> Iterator[Finding]:
        if self._status is None:
            for host, port in _tcp_addresses(config.node.listen):
                if port and (problem := _cannot_bind(host, port)):
                    yield _failed(
                        "ports", f"TCP port {port} cannot be taken: {problem}", "sdnet config set node.listen …"
                    )
            return
        addresses = list(dict.fromkeys(_tcp_addresses(self._status["addresses"])))
        if not self._status["addresses"]:
            yield _failed("ports", "the node listens nowhere", "Check node.listen: sdnet config get node.listen")
        for host, port in addresses:
            try:
                socket.create_connection((host, port), timeout=2).close()
            except OSError as error:
                yield _warning("ports", f"{host} port {port} does not answer even here: {error}", "Check the firewall.")
                break
        else:
            ports = sorted({port for _, port in addresses})
            yield _ok("ports", f"TCP {', '.join(map(str, ports)) or 'none'}")

    def _network(self, config: Config) -> Iterator[Finding]:
        addresses = [i for i in local_interfaces() if not i.ip.is_loopback]
        versions = {i.ip.version for i in addresses if not i.ip.is_link_local}
        if not addresses:
            yield _warning("network", "this machine has no address but its own loopback", "Connect it to a network.")
        elif versions == {4, 6}:
            yield _ok("network", "IPv4 and IPv6")
        else:
            missing = " and ".join(f"IPv{v}" for v in (4, 6) if v not in versions)
            yield Finding(subject="network", health=Health.NOTE, detail=f"no address of {missing}")

    def _multicast(self, config: Config) -> Iterator[Finding]:
        if not config.discovery.mdns:
            yield Finding(
                subject="multicast",
                health=Health.NOTE,
                detail="mDNS is switched off: devices on this network are not found by it",
                advice="sdnet config set discovery.mdns true",
            )
            return
        problems = anyio.run(_try_multicast, multicast_interfaces(config.discovery.mdns_interfaces or None))
        good = sorted({name for name, problem in problems.items() if not problem})
        for name, problem in sorted(problems.items()):
            if problem:
                yield _warning(
                    "multicast",
                    f"{name}: {problem}",
                    f"Allow UDP port {MDNS_PORT} in the firewall; other devices may not be found on this network.",
                )
        if good:
            yield _ok("multicast", f"heard on {', '.join(good)}")
        elif not problems:
            yield _warning("multicast", "no interface can do it", "Connect to a network, or pair with a link (--qr).")

    def _firewall(self, config: Config) -> Iterator[Finding]:
        ports = sorted({port for _, port in _tcp_addresses((self._status or {}).get("addresses", ())) if port})
        port = ports[0] if ports else "PORT"
        if _output("ufw", "status").startswith("Status: active"):
            advice = f"ufw allow {MDNS_PORT}/udp; ufw allow {port}/tcp  (node.listen fixes the port)"
            yield Finding(subject="firewall", health=Health.NOTE, detail="ufw is active", advice=advice)
        elif _output("firewall-cmd", "--state") == "running":
            advice = f"firewall-cmd --add-service=mdns --add-port={port}/tcp  (node.listen fixes the port)"
            yield Finding(subject="firewall", health=Health.NOTE, detail="firewalld is running", advice=advice)
        else:
            yield _ok("firewall", "none that we know of is active")

    def _plugins(self, config: Config) -> Iterator[Finding]:
        if self._status is not None:
            records = ApiClient(config, timeout_s=COMMAND_TIMEOUT_S).get("/plugins")
        else:
            from ..plugins import find_plugins

            records = [record.to_dict() for record in find_plugins(config.plugins).records]
        bad = [r for r in records if r["state"] in ("failed", "incompatible", "quarantined")]
        for record in bad:
            yield _failed(
                "plugins",
                f"{record['name']} is {record['state']}: {record['reason']}",
                f"sdnet plugin check {record['name']}",
            )
        if not records:
            yield Finding(subject="plugins", health=Health.NOTE, detail="none are installed")
        elif not bad:
            yield _ok("plugins", ", ".join(r["name"] for r in records if r["state"] == "loaded"))

    def _devices(self, config: Config) -> Iterator[Finding]:
        if self._status is None:
            return
        devices = ApiClient(config, timeout_s=COMMAND_TIMEOUT_S).get("/devices")
        away = [d for d in devices if not d["connected"]]
        if not devices:
            yield Finding(subject="devices", health=Health.NOTE, detail="none is paired", advice="sdnet pair generate")
        for device in away:
            reason = device.get("reason") or device["state"]
            yield Finding(
                subject="devices", health=Health.NOTE, detail=f"{device['name']} is away: {reason}", advice=""
            )
        if devices and not away:
            yield _ok("devices", f"{len(devices)} paired, all connected")


async def _try_multicast(interfaces: tuple[Interface, ...]) -> dict[str, str]:
    """What is wrong with multicast, by interface; empty where we hear ourselves."""
    problems: dict[str, str] = {}

    async def attempt(interface: Interface) -> None:
        key = f"{interface.name} (IPv{interface.ip.version})"
        problems[key] = "nothing that is sent is heard"
        try:
            async with await open_socket(interface) as sock:
                group = group_address(interface)
                target = f"{group}%{interface.name}" if interface.ip.version == 6 else group
                with anyio.move_on_after(MULTICAST_WAIT_S):
                    await sock.sendto(_QUERY, target, MDNS_PORT)
                    while True:
                        data, _ = await sock.receive()
                        if data == _QUERY:
                            problems[key] = ""
                            return
        except OSError as error:
            problems[key] = error.strerror or str(error)

    async with anyio.create_task_group() as tasks:
        for interface in interfaces:
            tasks.start_soon(attempt, interface)
    return problems


def _tcp_addresses(addresses: Any) -> Iterator[tuple[str, int]]:
    """Hosts and ports of the TCP multiaddrs among these."""
    for address in addresses:
        parts = str(address).split("/")
        if len(parts) >= 5 and parts[1] in ("ip4", "ip6") and parts[3] == "tcp" and parts[4].isdigit():
            yield parts[2], int(parts[4])


def _cannot_bind(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except OSError as error:
        return "" if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) else error.strerror or str(error)
    return ""


def _existing(path: Path) -> Path:
    return next(candidate for candidate in (path.absolute(), *path.absolute().parents) if candidate.exists())


def _output(*words: str) -> str:
    """What a program of the system prints; empty if it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _ok(subject: str, detail: str) -> Finding:
    return Finding(subject=subject, health=Health.OK, detail=detail)


def _warning(subject: str, detail: str, advice: str) -> Finding:
    return Finding(subject=subject, health=Health.WARNING, detail=detail, advice=advice)


def _failed(subject: str, detail: str, advice: str) -> Finding:
    return Finding(subject=subject, health=Health.FAILED, detail=detail, advice=advice)
