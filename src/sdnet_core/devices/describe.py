"""Devices as plain values, for the local API and the command line."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

import msgspec

from ..identity import DeviceInfo
from .connection import transport_of
from .registry import Connected, Disconnected, PairedState

__all__ = ["describe_device", "describe_identity", "describe_more", "path_of"]


def describe_identity(info: DeviceInfo) -> dict[str, Any]:
    """Who a device is."""
    fingerprint = info.fingerprint
    return {
        "device_id": str(info.id),
        "name": info.name,
        "os": info.os,
        "version": info.version,
        "peer_id": info.peer_id,
        "fingerprint": {"words": fingerprint.words, "hex": fingerprint.hex},
    }


def describe_device(state: PairedState, *, now: float, last_error: str) -> dict[str, Any]:
    """A paired device and its state.

    :param now: seconds since the epoch.
    :param last_error: why the last attempt to reach it failed; empty if it did not.
    """
    device = state.device
    live = state.live if isinstance(state, Connected) else None
    if live is not None:
        shown, reason, last_error, last_seen = "connected", "", "", now
    else:
        if device.pending:
            shown = "pending"
        else:
            shown = "disconnected" if device.trust.access is not None else str(device.trust)
        reason = (state.reason if isinstance(state, Disconnected) else "") or last_error
        last_seen = state.connection.last_seen
    return {
        **describe_identity(device.info),
        "name": device.name,
        "own_name": device.info.name,
        "trust": str(device.trust),
        "state": shown,
        "connected": live is not None,
        "address": live.address if live is not None else None,
        "path": path_of(live.address) if live is not None else None,
        "known_addresses": list(state.connection.addresses),
        "latency_s": live.latency_s if live is not None else None,
        "paired_at": device.paired_at,
        "last_seen": last_seen or None,
        "reason": reason,
        "last_error": last_error,
    }


def path_of(address: str | None) -> str:
    """How a device at an address is reached: ``direct`` or ``relayed``."""
    return "relayed" if transport_of(address) == "p2p-circuit" else "direct"


def describe_more(state: PairedState) -> dict[str, Any]:
    """What else there is to know of a paired device: its pairing, and the connection to it."""
    device = state.device
    more: dict[str, Any] = {
        "pairing_id": str(uuid.UUID(bytes=device.pairing_id)),
        "pending": device.pending,
        "auto_connect": device.auto_connect,
        "connection_config": msgspec.structs.asdict(device.connection_config),
        "connection": None,
    }
    if isinstance(state, Connected):
        session = state.live.session
        traffic = dataclasses.asdict(session.traffic)
        del traffic["last_sent"], traffic["last_received"]  # of another clock
        more["connection"] = {
            "connected_at": state.connected_at,
            "dialled_by": "us" if state.live.dialled_address is not None else "them",
            "address": state.live.address,
            "transport": transport_of(state.live.address),
            "latency_s": state.live.latency_s,
            "suite": session.keys.suite.name.lower(),
            "keys_made_at": session.keys.created_at,
            "keys_expire_at": session.expires_at,
            "key_rotations": session.rotations,
            "streams": len(session.streams),
            "messages_sent": state.live.messages_sent,
            "messages_received": state.live.messages_received,
            **traffic,
        }
    return more
