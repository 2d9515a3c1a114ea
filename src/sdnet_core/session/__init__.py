"""Sessions between paired devices: handshake, keys, sealed streams, control channel."""

from __future__ import annotations

from sdnet_core.session.channel import MAX_RECORD_BYTES, SealedStream
from sdnet_core.session.connect import initiate, respond
from sdnet_core.session.control import (
    ControlChannel,
    ControlEnd,
    ControlSettings,
    EndReason,
    GoodbyeReason,
)
from sdnet_core.session.epoch import SessionLimits, Traffic
from sdnet_core.session.handshake import RefusalReason, SessionRefusedError
from sdnet_core.session.keys import PROTOCOL_ID, PeerSecret, Role, SessionKeys, Suite, suites_by_speed
from sdnet_core.session.preamble import Preamble, read_preamble
from sdnet_core.session.session import Session, SessionTable, keep_ours

__all__ = [
    "MAX_RECORD_BYTES",
    "PROTOCOL_ID",
    "ControlChannel",
    "ControlEnd",
    "ControlSettings",
    "EndReason",
    "GoodbyeReason",
    "PeerSecret",
    "Preamble",
    "RefusalReason",
    "Role",
    "SealedStream",
    "Session",
    "SessionKeys",
    "SessionLimits",
    "SessionRefusedError",
    "SessionTable",
    "Suite",
    "Traffic",
    "initiate",
    "keep_ours",
    "read_preamble",
    "respond",
    "suites_by_speed",
]
