"""Every count and duration of the pairing plugin, in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PairingLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingLimits:
    """Bounds; durations in seconds.

    :param code_lifetime_s: how long a code is good for, enforced by the device that shows it.
    :param search_timeout_s: how long a joiner looks for that device unless told otherwise.
    :param step_timeout_s: longest wait for one message or one dial.
    :param conversation_timeout_s: longest conversation, without the time the person takes to answer.
    :param answer_timeout_s: how long the person may take.
    :param retry_pause_s: between two attempts at the same peer.
    :param expiry_check_s: how often the clock is looked at while a code waits: the event loop's own may stand still
        while the machine sleeps.
    :param max_open_sessions: sessions of one role that are not over.
    :param max_ended_sessions: sessions that are over and still listed.
    :param max_unproven: conversations whose other side has not proven yet that it knows a code; the oldest gives way.
    :param max_proven: conversations at once over one code.
    :param max_peers: peers that one joiner tries.
    :param max_used_codes: session ids remembered as used, and introductions as seen; the oldest give way.
    :param introduction_lifetime_s: how long an introduction waits for all three devices and their people; at most 3600.
    :param max_introductions: introductions going on, and those that are over and still listed.
    :param max_introductions_asked: those that wait for an answer here, from one introducer.
    """

    code_lifetime_s: float = 300.0
    search_timeout_s: float = 30.0
    step_timeout_s: float = 10.0
    conversation_timeout_s: float = 30.0
    answer_timeout_s: float = 60.0
    retry_pause_s: float = 1.0
    expiry_check_s: float = 1.0
    max_open_sessions: int = 8
    max_ended_sessions: int = 64
    max_unproven: int = 8
    max_proven: int = 4
    max_peers: int = 8
    max_used_codes: int = 1024
    introduction_lifetime_s: float = 600.0
    max_introductions: int = 32
    max_introductions_asked: int = 8
