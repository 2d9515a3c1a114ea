"""Devices as plain values, for the local API and the command line."""

from __future__ import annotations

from typing import Any

from ..identity import DeviceInfo
from .registry import Connected, Disconnected, PairedState

__all__ = ["describe_device", "describe_identity"]


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
        shown, reason, last_seen = "connected", "", now
    else:
        if device.pending:
            shown = "pending"
        else:
            shown = "disconnected" if device.trust.access is not None else str(device.trust)
        reason = last_error or (state.reason if isinstance(state, Disconnected) else "")
        last_seen = state.connection.last_seen
    return {
        **describe_identity(device.info),
        "trust": str(device.trust),
        "state": shown,
        "connected": live is not None,
        "address": live.address if live is not None else None,
        "known_addresses": list(state.connection.addresses),
        "latency_s": live.latency_s if live is not None else None,
        "paired_at": device.paired_at,
        "last_seen": last_seen or None,
        "reason": reason,
    }
