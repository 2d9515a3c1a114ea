"""What a node shows of itself: its state at a glance, and numbers for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .devices.describe import describe_identity
from .events import (
    AuthenticationFailed,
    ConnectionFailed,
    EventBus,
    MessageReceived,
    NetworkEvent,
    PeerRefused,
    PluginFailed,
    StoreRecovered,
    Subscription,
)
from .metrics import PluginMetrics, render
from .plugins import PluginState
from .wording import format_count

if TYPE_CHECKING:
    from prometheus_client import Metric

    from .core import NetworkingCore

__all__ = ["NodeMetrics", "WatchMethods"]

_ERRORS_SHOWN = 5
_ERRORS = (ConnectionFailed, AuthenticationFailed, PeerRefused, PluginFailed, StoreRecovered)
_NEARLY_FULL = 0.8


class NodeMetrics:
    """The numbers of a node. What happens is counted as it happens, the rest is read when somebody asks."""

    def __init__(self, core: NetworkingCore, events: EventBus) -> None:
        self._core = core
        self._plugins: dict[str, PluginMetrics] = {}
        self._events: Counter[str] = Counter()
        self._messages: Counter[str] = Counter()
        self._message_bytes: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self.deliveries: Counter[tuple[str, str]] = Counter()
        """By protocol and outcome: what became of messages that were sent."""
        events.add_tap(self._take)

    def of_plugin(self, name: str) -> PluginMetrics:
        """A plugin's own."""
        return self._plugins.setdefault(name, PluginMetrics(name))

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return render([self._families, *(plugin.families for _, plugin in sorted(self._plugins.items()))])

    def _take(self, event: NetworkEvent) -> None:
        self._events[event.kind] += 1
        if isinstance(event, MessageReceived):
            self._messages[event.protocol] += event.count
            self._message_bytes[event.protocol] += event.size_bytes
        elif isinstance(event, PluginFailed):
            self._failures[event.plugin] += 1

    def _families(self) -> Iterator[Metric]:
        core = self._core
        states = Counter({"connected": 0, "disconnected": 0, "pending": 0, "expired": 0, "revoked": 0})
        devices = core.describe_devices()
        states.update(device["state"] for device in devices)
        pool, traffic = core._connections.pool, core._connections.pool.traffic()
        outbox, refusals, name = core.messages.outbox, core._refusals, "device_name"
        about = {"version": metadata.version("sdnet-core"), "instance": core.config.instance}
        yield _gauge("info", "About this node.", [(about, 1)])
        yield _gauge("uptime_seconds", "How long it has run.", [({}, core.uptime_s)])
        yield _gauge("devices", "Paired devices by state.", _by("state", states))
        yield _gauge("connections", "Live sessions with paired devices.", [({}, len(pool))])
        yield _counter("connections_established", "Sessions made.", [({}, self._events["connection-established"])])
        yield _counter("connections_lost", "Sessions ended.", [({}, self._events["connection-lost"])])
        yield _counter("connection_failures", "Dials in vain.", [({}, self._events["connection-error"])])
        yield _counter(
            "handshakes",
            "Session handshakes by result.",
            _by("result", {"established": self._events["connection-established"], "failed": refusals.failed}),
        )
        yield _counter("refusals", "Peers refused, by what they asked for.", _by("what", refusals.refusals))
        yield _counter("key_rotations", "Changes of session keys.", [({}, pool.rotations())])
        yield _counter(
            "bytes",
            "Bytes of content in sealed streams.",
            _by("direction", {"sent": traffic.bytes_sent, "received": traffic.bytes_received}),
        )
        yield _counter(
            "records",
            "Sealed records.",
            _by("direction", {"sent": traffic.records_sent, "received": traffic.records_received}),
        )
        yield _counter(
            "streams",
            "Sealed streams opened, by whom.",
            _by("by", {"us": traffic.streams_opened, "them": traffic.streams_accepted}),
        )
        yield _gauge("streams_open", "Sealed streams open.", [({}, sum(len(live.session.streams) for live in pool))])
        yield _counter("messages_received", "Messages and requests taken.", _by("protocol", self._messages))
        yield _counter("message_bytes_received", "Their bytes.", _by("protocol", self._message_bytes))
        yield _counter(
            "deliveries",
            "What became of messages that were sent.",
            [({"protocol": key[0], "outcome": key[1]}, count) for key, count in self.deliveries.items()],
        )
        yield _gauge("outbox_messages", "Messages that wait for their device.", [({}, outbox.count)])
        yield _gauge("outbox_bytes", "Their bytes.", [({}, outbox.size_bytes)])
        yield _counter("events", "Events published.", _by("kind", self._events))
        yield _counter("events_dropped", "Events that slow listeners lost.", [({}, core.events.dropped)])
        yield _counter("plugin_failures", "Exceptions of plugins.", _by("plugin", self._failures))
        known = [({"device_id": device["device_id"], name: device["name"]}, device) for device in devices]
        yield _gauge("device_connected", "Whether a device is connected.", [(d, s["connected"]) for d, s in known])
        yield _gauge(
            "device_latency_seconds",
            "Round trip to a connected device, averaged.",
            [(d, s["latency_s"]) for d, s in known if s["latency_s"] is not None],
        )


def _gauge(name: str, help: str, values: Iterable[tuple[dict[str, str], float]]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily, name, help, values)


def _counter(name: str, help: str, values: Iterable[tuple[dict[str, str], float]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily, name, help, values)


def _filled(kind: Any, name: str, help: str, values: Iterable[tuple[dict[str, str], float]]) -> Metric:
    listed = list(values)
    labels = list(listed[0][0]) if listed else []
    family: Metric = kind(f"sdnet_{name}", help, labels=labels)
    for given, value in listed:
        family.add_metric(list(given.values()), float(value))  # type: ignore[attr-defined]
    return family


def _by(label: str, values: Any) -> list[tuple[dict[str, str], float]]:
    return [({label: key}, value) for key, value in values.items()]


class WatchMethods:
    """The methods of `NetworkingCore` that show what goes on."""

    events: EventBus
    metrics: NodeMetrics

    def subscribe_events(self, kinds: Iterable[str] | None = None) -> Subscription:
        """Listen to what happens: ``async with core.subscribe_events() as events: async for event in events``."""
        return self.events.subscribe(kinds)

    def status(self: NetworkingCore) -> dict[str, Any]:  # type: ignore[misc]
        """The node at a glance, as plain values."""
        devices = self.describe_devices()
        addresses = list(self.addresses)
        outbox, limits = self.messages.outbox, self.messages.outbox.limits
        records = self.plugin_records()
        found = {
            **describe_identity(self.device_info),
            "instance": self.config.instance,
            "addresses": addresses,
            "families": {family: any(f"/{family}/" in a for a in addresses) for family in ("ip4", "ip6")},
            "transports": list(self.config.node.transports),
            "meeting": self.describe_meeting(),
            "storage": {
                **self._vault.protection.to_dict(),
                "recovered": [*self._vault.recovered, *self._storage.recovered, *self._recovered],
            },
            "uptime_s": self.uptime_s,
            "devices": {
                "paired": len(devices),
                "connected": sum(device["connected"] for device in devices),
                "away": [_away(device) for device in devices if not device["connected"]],
            },
            "outbox": {
                "messages": outbox.count,
                "bytes": outbox.size_bytes,
                "devices": outbox.devices,
                "max_messages": limits.messages,
                "max_bytes": limits.bytes,
            },
            "approvals": len(self.approvals.pending()),
            "errors": _errors(self.events.history([kind.kind for kind in _ERRORS])),
            "plugins": {
                "loaded": [r.name for r in records if r.state is PluginState.LOADED],
                "failed": [r.name for r in records if r.state is PluginState.FAILED],
                "quarantined": [r.name for r in records if r.state is PluginState.QUARANTINED],
            },
            "data": str(self.config.paths.data),
        }
        return {**found, "warnings": list(_warnings(found))}


def _away(device: dict[str, Any]) -> dict[str, Any]:
    kept = ("device_id", "name", "state", "reason", "last_seen", "next_attempt_in_s")
    return {key: device[key] for key in kept}


def _errors(events: Iterable[NetworkEvent]) -> list[dict[str, Any]]:
    """The latest different ones, oldest first, each with how often it has happened."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, _ERRORS):
            text = _explain(event)
            before = found.pop(text, None)
            count = 1 if before is None else before["count"] + 1
            found[text] = {"at": event.at, "kind": event.kind, "seq": event.seq, "text": text, "count": count}
    return list(found.values())[-_ERRORS_SHOWN:]


def _explain(event: NetworkEvent) -> str:
    match event:
        case ConnectionFailed(device_name=name, reason=reason):
            return f"{name} could not be reached: {reason}"
        case AuthenticationFailed(peer_id=peer_id, reason=reason):
            return f"{peer_id} did not prove who it is: {reason}"
        case PeerRefused(peer_id=peer_id, what=what, reason=reason):
            return f"{peer_id} was refused ({what}): {reason}"
        case PluginFailed(plugin=plugin, reason=reason):
            return f"plugin {plugin}: {reason}"
        case StoreRecovered(detail=detail):
            return detail
        case _:
            return event.kind


def _warnings(found: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What a person should know, each with what to do about it."""
    addresses, storage, outbox, plugins = found["addresses"], found["storage"], found["outbox"], found["plugins"]
    if not addresses:
        yield _warning("It listens nowhere: others cannot connect to it.", "sdnet config get node.listen; sdnet logs")
    elif all("/127." in address or "/ip6/::1/" in address for address in addresses):
        yield _warning("It listens on this machine only.", "sdnet config get node.listen")
    if storage["protection"] == "unprotected":
        yield _warning("Whoever can read its files can read its keys.", "sdnet passphrase set")
    for text in storage["recovered"]:
        yield _warning(f"Recovered: {text}", "see sdnet audit; check the disk")
    for state, advice in (("expired", "pair it again: sdnet pair"), ("pending", "start the other device to finish it")):
        names = [device["name"] for device in found["devices"]["away"] if device["state"] == state]
        if names:
            yield _warning(f"The pairing with {', '.join(names)} is {state}.", advice)
    for name in plugins["failed"]:
        yield _warning(f"Plugin {name} has failed.", "sdnet plugins")
    for name in plugins["quarantined"]:
        yield _warning(f"Plugin {name} is in quarantine.", f"sdnet plugins; sdnet plugins enable {name}")
    if max(outbox["messages"] / outbox["max_messages"], outbox["bytes"] / outbox["max_bytes"]) > _NEARLY_FULL:
        yield _warning("The outbox is nearly full.", "sdnet msg outbox; sdnet msg cancel")
    if found["approvals"]:
        waiting = format_count(found["approvals"], "request waits", "requests wait")
        yield _warning(f"{waiting} for your approval.", "sdnet approvals")


def _warning(what: str, action: str) -> dict[str, str]:
    return {"what": what, "do": action}
