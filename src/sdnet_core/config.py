"""Settings: defaults, then the TOML file, then ``SDNET_*`` variables, then arguments; the last one wins.

A variable is named after its place in the file: ``SDNET_NODE_NAME`` is ``name`` in ``[node]``; lists are separated by
commas. ``SDNET_HOME`` moves everything sdnet keeps below one folder. This is the only module that knows about platform
directories and the environment.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import platformdirs

from .errors import ConfigurationError

__all__ = [
    "Config",
    "ConnectionSettings",
    "DiscoverySettings",
    "LogSettings",
    "NodeSettings",
    "Paths",
    "PluginSettings",
    "PublicNodeSettings",
    "load_config",
    "log_overrides",
]

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")

T = TypeVar("T")
_Count = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[node]``

    :param name: what other devices call this one; the host's name by default.
    :param listen: multiaddrs to listen on; port 0 keeps the port of the last run if it is free.
    :param transports: what to connect with, preferred first: ``tcp``, ``quic``, ``ws`` (WebSocket); ``listen`` decides
        what is listened on, with addresses such as ``/ip4/0.0.0.0/udp/0/quic-v1`` and ``/ip4/0.0.0.0/tcp/0/ws``.
    :param downloads: folder for received files, absolute or from ``~``; the platform's downloads folder by default.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
    transports: Annotated[tuple[Literal["tcp", "quic", "ws"], ...], msgspec.Meta(min_length=1)] = ("tcp",)
    downloads: str | None = None


class DiscoverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[discovery]``

    :param mdns: announce and browse on the local network.
    :param mdns_interfaces: addresses of the interfaces to use; all when empty.
    :param dht: be found, and find others, through meeting points; without one nothing is done.
    :param bootstrap: meeting points: multiaddrs of public nodes (``sdnet node``) that end in ``/p2p/`` and a peer id.
    :param relay: let meeting points relay connections that cannot be made directly.
    :param upnp: ask the router for a port, where ``miniupnpc`` is installed.
    """

    mdns: bool = True
    mdns_interfaces: tuple[str, ...] = ()
    dht: bool = True
    bootstrap: tuple[str, ...] = ()
    relay: bool = True
    upnp: bool = True


class ConnectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[connections]``; times in seconds

    :param max_connections: connections held at once.
    :param reconnect_min_s: first pause between attempts; it doubles, with jitter, up to ``reconnect_max_s``;
        with few devices it stays shorter.
    :param keepalive_misses: unanswered keepalives after which a connection counts as lost.
    """

    max_connections: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 50
    dial_timeout_s: Positive = 15.0
    handshake_timeout_s: Positive = 10.0
    reconnect_min_s: Positive = 0.5
    reconnect_max_s: Positive = 60.0
    keepalive_interval_s: Positive = 30.0
    keepalive_misses: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3


class PublicNodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[public_node]``: a meeting point that ``sdnet node run`` runs

    :param listen: multiaddrs to listen on.
    :param announce: where devices reach it, if it does not know that itself, as behind a name or a port forwarding.
    :param bootstrap: other public nodes that it works together with.
    :param relay: carry connections between devices that cannot reach each other.
    :param max_connections: connections at a time.
    :param max_connections_per_address: of one IP address (or one IPv6 /64).
    :param max_records: records kept for devices.
    :param max_records_per_address: of one IP address (or one IPv6 /64).
    :param max_reservations: devices that can be called through it at a time.
    :param max_reservations_per_address: of one IP address (or one IPv6 /64).
    :param max_circuits: connections that it carries at a time.
    :param max_circuits_per_peer: of one device.
    :param max_circuits_per_address: begun by one IP address (or one IPv6 /64).
    :param circuit_s: how long it carries one connection; the devices make another one in time.
    :param circuit_bytes: what one connection may carry in each direction.
    """

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001")
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    relay: bool = True
    max_connections: _Count = 2000
    max_connections_per_address: _Count = 128
    max_records: _Count = 16_384
    max_records_per_address: _Count = 512
    max_reservations: _Count = 512
    max_reservations_per_address: _Count = 32
    max_circuits: _Count = 256
    max_circuits_per_peer: _Count = 16
    max_circuits_per_address: _Count = 64
    circuit_s: _Count = 3600
    circuit_bytes: Annotated[int, msgspec.Meta(ge=65_536, le=1 << 50)] = 1 << 30


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[log]``

    :param level: of everything that has no level of its own; of libraries, not below ``warning``.
    :param levels: of single components, such as ``swarm=debug``; ``sdnet logs level`` lists them.
    :param format: ``human`` or ``json``, one object a line.
    :param max_bytes: size at which the log file is rotated.
    :param backups: rotated files kept.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    levels: tuple[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]+=(debug|info|warning|error)$")], ...] = ()
    format: Literal["human", "json"] = "human"
    max_bytes: Annotated[int, msgspec.Meta(ge=4096)] = 5_000_000
    backups: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3


class PluginSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[plugins]``: which plugins load, and under ``[plugins.<name>]`` each plugin's own table

    :param allow: if given, only these load.
    :param disable: these do not load.
    :param strict: a plugin that fails to load stops the start.
    :param max_failures: one that fails more often than that within ``failure_window_s`` is quarantined.
    :param max_tasks: one with more tasks than that is quarantined.
    :param tables: the plugins' own tables, checked by the plugins.
    """

    allow: tuple[str, ...] | None = None
    disable: tuple[str, ...] = ()
    strict: bool = False
    max_failures: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 10
    failure_window_s: Positive = 60.0
    max_tasks: Annotated[int, msgspec.Meta(ge=10)] = 10_000
    tables: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Paths:
    """Where one instance keeps its things."""

    config_file: Path
    data: Path
    """Sealed store, vault, plugins' data."""
    logs: Path
    runtime: Path
    """A private directory for the socket, at a short path."""

    @property
    def socket(self) -> Path:
        """The local API's Unix socket: named by a hash of the data directory, since socket paths end at 107 bytes."""
        return self.runtime / (hashlib.sha256(os.fsencode(self.data.absolute())).hexdigest()[:16] + ".sock")

    @property
    def log_file(self) -> Path:
        """The daemon's log."""
        return self.logs / "sdnet.log"

    @property
    def lock_file(self) -> Path:
        """Held by the one node on this data directory (by `NetworkingCore`); holds its process id."""
        return self.data / "lock"


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one instance, checked."""

    instance: str
    paths: Paths
    node: NodeSettings = field(default_factory=NodeSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    log: LogSettings = field(default_factory=LogSettings)
    public_node: PublicNodeSettings = field(default_factory=PublicNodeSettings)
    plugins: PluginSettings = field(default_factory=PluginSettings)

    @property
    def device_name(self) -> str:
        """What this device is called."""
        if self.node.name is not None:
            return self.node.name
        host = "".join(c for c in platform.node().split(".", 1)[0] if c.isprintable())[:64] or "device"
        return host if self.instance == "default" else f"{host[: 63 - len(self.instance)]}-{self.instance}"

    @property
    def downloads_dir(self) -> Path:
        """Where received files go."""
        if self.node.downloads is not None:
            return Path(self.node.downloads).expanduser()
        return Path(platformdirs.user_downloads_dir())


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "node": NodeSettings,
    "discovery": DiscoverySettings,
    "connections": ConnectionSettings,
    "log": LogSettings,
    "public_node": PublicNodeSettings,
}


_KINDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "nothing",
    "object": "a table",
    "str": "a text",
}


def load_config(
    instance: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read the settings of an instance.

    :param instance: its name; ``SDNET_INSTANCE`` or ``default`` when None.
    :param environ: the environment; the process's own when None.
    :param overrides: values from arguments, by section.
    :raises ConfigurationError: a setting is unknown or wrong; says where.
    """
    env = os.environ if environ is None else environ
    name, paths = find_paths(instance, environ=env)
    return build_config(name, paths, read_document(paths.config_file), environ=env, overrides=overrides)


def find_paths(instance: str | None = None, *, environ: Mapping[str, str] | None = None) -> tuple[str, Paths]:
    """An instance's name and places; no file is read.

    :raises ConfigurationError: it is no name for an instance.
    """
    env = os.environ if environ is None else environ
    name = instance or env.get("SDNET_INSTANCE") or "default"
    if not _INSTANCE.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no instance name: up to 32 letters, digits, dots, hyphens, underscores, not starting with "
            "a sign."
        )
    return name, _paths(name, env)


def build_config(
    name: str,
    paths: Paths,
    document: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Check a configuration file's document and what overrides it.

    :raises ConfigurationError: a setting is unknown or wrong; says where.
    """
    env, document = environ, dict(document)
    plugins = document.pop("plugins", {})
    if not isinstance(plugins, dict):
        raise ConfigurationError(f"{paths.config_file}: [plugins] must be a table.")
    plugins = {**plugins, **(overrides or {}).get("plugins", {})}
    unknown = document.keys() - SECTIONS.keys()
    if unknown:
        raise ConfigurationError(f"{paths.config_file}: unknown section [{min(unknown)}].")
    values: dict[str, Any] = {}
    for section, type_ in SECTIONS.items():
        if not isinstance(found := document.get(section, {}), Mapping):
            raise ConfigurationError(f"{paths.config_file}: [{section}] must be a table.")
        table = dict(found)
        origin = {key: str(paths.config_file) for key in table}
        for key in type_.__struct_fields__:
            variable = variable_of(section, key)
            if variable in env:
                table[key], origin[key] = _from_text(env[variable], type_, key), variable
        table.update((overrides or {}).get(section, {}))
        values[section] = _convert(table, type_, section, origin, paths.config_file)
    downloads = values["node"].downloads
    if downloads is not None and not Path(downloads).expanduser().is_absolute():
        raise ConfigurationError(f"[node]: downloads = {downloads!r} is not an absolute path.")
    return Config(instance=name, paths=paths, plugins=_plugin_settings(plugins, env, paths.config_file), **values)


def log_overrides(levels: Iterable[str]) -> dict[str, Any]:
    """Settings of ``[log]`` from arguments: ``debug`` for everything, ``swarm=debug`` for one component."""
    found: dict[str, Any] = {}
    for level in levels:
        if "=" in level:
            found["levels"] = (*found.get("levels", ()), level)
        else:
            found["level"] = level
    return found


def variable_of(section: str, key: str) -> str:
    """The environment variable that overrides a setting of the core."""
    if section == "plugins":
        named = {"allow": "SDNET_PLUGINS", "disable": "SDNET_DISABLE_PLUGINS", "strict": "SDNET_STRICT"}
        return named.get(key, f"SDNET_PLUGINS_{key}".upper())
    return f"SDNET_{section}_{key}".upper()


def _plugin_settings(table: dict[str, Any], env: Mapping[str, str], file: Path) -> PluginSettings:
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    plain: dict[str, Any] = {key: value for key, value in table.items() if key not in tables}
    for key in PluginSettings.__struct_fields__:
        variable = variable_of("plugins", key)
        if key != "tables" and variable in env:
            plain[key] = _split(env[variable]) if key in ("allow", "disable") else env[variable].strip().lower()
    if plain.get("strict") in ("yes", "on"):
        plain["strict"] = True
    return _convert({**plain, "tables": tables}, PluginSettings, "plugins", {}, file)


def _convert(table: dict[str, Any], type_: type[T], section: str, origin: Mapping[str, str], file: Path) -> T:
    try:
        return msgspec.convert(table, type_, strict=False)
    except msgspec.ValidationError as error:
        key = str(error).rpartition("`$.")[2].rstrip("`").split("[")[0]
        raise ConfigurationError(f"{origin.get(key, str(file))}: [{section}]: {explain_invalid(error)}.") from error


def explain_invalid(error: msgspec.ValidationError) -> str:
    """Why a setting is wrong, for the person who wrote it, such as ``a whole number is needed, not a text``."""

    def kind(names: str) -> str:
        return " or ".join(_KINDS.get(name.strip(), name.strip()) for name in names.split("|"))

    def plain(found: re.Match[str]) -> str:
        return f"{kind(found[1])}{found[2]} is needed" + (f", not {kind(found[3])}" if found[3] else "")

    return re.sub(r"Expected `([^`]+)`(.*?)(?:, got `([^`]+)`)?(?= - at |$)", plain, str(error))


def _from_text(text: str, type_: type[msgspec.Struct], key: str) -> Any:
    default = {f.name: f.default for f in msgspec.structs.fields(type_)}[key]
    return _split(text) if isinstance(default, tuple) else text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def read_document(file: Path) -> dict[str, Any]:
    """A configuration file's document; empty if there is no file.

    :raises ConfigurationError: it is not TOML, or cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return tomllib.load(opened)
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not valid TOML: {error}.") from error
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from error


def _paths(instance: str, env: Mapping[str, str]) -> Paths:
    home = env.get("SDNET_HOME")
    if home:
        base = Path(home).expanduser().absolute() / instance
        return Paths(base / "config.toml", base / "data", base / "logs", _runtime_directory(env))
    return Paths(
        Path(platformdirs.user_config_dir("sdnet", appauthor=False)) / instance / "config.toml",
        Path(platformdirs.user_data_dir("sdnet", appauthor=False)) / instance,
        Path(platformdirs.user_log_dir("sdnet", appauthor=False)) / instance,
        _runtime_directory(env),
    )


def _runtime_directory(env: Mapping[str, str]) -> Path:
    runtime = env.get("XDG_RUNTIME_DIR")
    if runtime and len(os.fsencode(runtime)) <= 60:
        return Path(runtime) / "sdnet"
    import tempfile  # not needed in most sessions, and slow to import

    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(tempfile.gettempdir())
    # A temporary folder deep below some home would make the socket's path too long.
    return (folder if len(os.fsencode(folder)) <= 60 else Path("/tmp")) / f"sdnet-{user}"
