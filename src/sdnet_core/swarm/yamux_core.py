"""``/yamux/1.0.0`` without I/O: what the other side sent goes in, what to send comes out.

:class:`YamuxCore` keeps the connection's state and decides what is sent next; :class:`StreamCore` is one stream.
Neither waits for anything: whoever drives them is told by hooks when there is something to read, room to write, or
output.

What is sent next: control frames, then streams that had nothing to send a moment ago, then the others in turn. A ping
beside a bulk transfer waits for what is sealed already, and for nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from .yamux_frames import (
    ACK,
    BATCH_MESSAGES,
    DATA,
    FIN,
    GO_AWAY,
    GO_AWAY_NORMAL,
    GO_AWAY_PROTOCOL_ERROR,
    HEADER,
    HEADER_BYTES,
    KNOWN_FLAGS,
    MAX_PAYLOAD_BYTES,
    MAX_STREAM_ID,
    NOISE_PLAINTEXT_BYTES,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    YamuxError,
)
from .yamux_window import MAX_QUEUED_BYTES, StreamCore

__all__ = ["Buffer", "YamuxCore"]

Buffer = bytes | bytearray | memoryview
S = TypeVar("S", bound=StreamCore)

_MAX_CONTROL_FRAMES = 4096
"""A peer that makes us answer without reading the answers is cut off here."""
_GROWTH_BUDGET_BYTES = 32 * 1024 * 1024
"""What all streams of one connection together may grow their receive windows by."""
_MAX_UNREAD_BYTES = 40 * 1024 * 1024
"""What may lie unread in all streams of one connection; a stream that brings more is reset."""
_FRESH_BYTES = 16 * 1024
"""What a stream sends before it counts as a bulk transfer."""
_JOIN_BYTES = 8 * 1024
"""Payloads up to this size are copied into a message with others; larger ones get a message of their own."""
_LINGER_S = 60.0
_MAX_RTT_SAMPLES = 8
_RTT_EVERY_S = 10.0
_MAX_RTT_S = 10.0


class YamuxCore(Generic[S]):
    """One connection.

    :param initiator: whether we opened the connection.
    :param make_stream: makes the object for a stream of the given id.
    :param now: the time in seconds, from any beginning.
    :param max_inbound_streams: streams that the peer may have open at a time; more are reset.
    """

    def __init__(
        self,
        initiator: bool,
        make_stream: Callable[[int], S],
        now: Callable[[], float],
        *,
        max_inbound_streams: int = 256,
    ) -> None:
        self.streams: dict[int, S] = {}
        self.failure: str | None = None
        self.growth_budget = _GROWTH_BUDGET_BYTES
        self.unread_bytes = 0
        self.queued_bytes = 0
        self.unacknowledged = 0
        self.rtt_s: float | None = None
        self.now = now
        self.on_output: Callable[[], None] = _nothing
        self.on_inbound: Callable[[S], None] = _nothing_with
        self.on_failure: Callable[[], None] = _nothing
        self._initiator = initiator
        self._make_stream = make_stream
        self._max_inbound = max_inbound_streams
        self._next_id = 1 if initiator else 2
        self._last_inbound_id = 0
        self._inbound = 0
        self.remote_going_away = False
        self._control: deque[bytes] = deque()
        self._fresh: deque[StreamCore] = deque()
        self._bulk: deque[StreamCore] = deque()
        self._lingering: deque[tuple[float, S]] = deque()
        self._ping_number = 0
        self._ping_sent_at: float | None = None
        self._last_ping = 0.0
        # What of the incoming bytes is not a whole header yet, and the payload that is being received.
        self._partial = b""
        self._body_left = 0
        self._body_flags = 0
        self._body_stream: S | None = None

    # Streams.

    @property
    def can_open(self) -> bool:
        """Whether new streams of ours are possible."""
        return self.failure is None and not self.remote_going_away and self._next_id <= MAX_STREAM_ID

    def open(self) -> S:
        """Open a stream; the peer has not agreed to it yet. Only while :attr:`can_open`."""
        assert self.can_open
        self.prune()
        stream = self._make_stream(self._next_id)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        self.unacknowledged += 1
        self.queue_control(WINDOW_UPDATE, SYN, stream.stream_id, 0)
        return stream

    def is_inbound(self, stream_id: int) -> bool:
        """Whether the peer has opened the stream of that id."""
        return (stream_id % 2 == 1) != self._initiator

    def forget(self, stream: StreamCore) -> None:
        """A stream is done; its id is never used again."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        stream.give_back_growth()
        if self.is_inbound(stream.stream_id):
            self._inbound -= 1
        else:
            self.acknowledged(stream)

    def acknowledged(self, stream: StreamCore) -> None:
        """The peer has agreed to a stream of ours, or there is no more to agree to."""
        if not stream.acknowledged:
            stream.acknowledged = True
            self.unacknowledged -= 1

    def linger(self, stream: S) -> None:
        """A stream nobody reads waits for the peer to end it, for a minute at most."""
        self._lingering.append((self.now() + _LINGER_S, stream))

    def prune(self) -> None:
        """Reset the streams that have waited long enough for the peer to end them."""
        while self._lingering and (self._lingering[0][1].is_closed or self._lingering[0][0] <= self.now()):
            self._lingering.popleft()[1].abort("The peer did not end the stream.")

    def fail(self, reason: str, *last_words: bytes) -> None:
        """End the connection: every stream breaks, and nothing is sent any more but ``last_words``."""
        if self.failure is not None:
            return
        self.failure = reason
        # Whoever uses the streams ends before they break.
        self.on_failure()
        for stream in list(self.streams.values()):
            stream.break_off(reason)
        self.streams.clear()
        self._lingering.clear()
        for queue in (self._fresh, self._bulk):
            queue.clear()
        self.queued_bytes = 0
        self._control = deque(last_words)
        self.on_output()

    # Sending.

    @property
    def has_output(self) -> bool:
        """Whether :meth:`next_output` would give anything."""
        return bool(self._control or self._fresh or self._bulk)

    def go_away(self) -> None:
        """Say that we take no more streams."""
        self.queue_control(GO_AWAY, 0, 0, GO_AWAY_NORMAL)

    def queue_control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Queue a frame without payload, ahead of all data."""
        if self.failure is not None:
            return
        if len(self._control) >= _MAX_CONTROL_FRAMES:
            self.fail("The peer does not read what it made us answer.")
            return
        self._control.append(HEADER.pack(0, kind, flags, stream_id, length))
        self.on_output()

    def queue_stream(self, stream: StreamCore) -> None:
        """A stream has something to send."""
        if stream.pending_bytes <= _FRESH_BYTES:
            self._fresh.append(stream)
        else:
            self._bulk.append(stream)
        self.on_output()

    def next_output(self, max_bytes: int = MAX_PAYLOAD_BYTES) -> list[Buffer]:
        """What to send next, in pieces of at most 65,519 bytes: each fits one Noise message.

        :param max_bytes: about how much it may be; control frames and one small frame of each waiting stream may
            come on top.
        """
        out = _Output()
        was_full = self.queued_bytes >= MAX_QUEUED_BYTES
        while self._control and len(out.small) < _FRESH_BYTES:
            out.add(self._control.popleft())
        while self._fresh and len(out.small) < _FRESH_BYTES and out.total < max_bytes:
            self._take_turn(self._fresh.popleft(), min(_FRESH_BYTES, max_bytes), out)
        turn = NOISE_PLAINTEXT_BYTES * max(1, BATCH_MESSAGES // max(1, len(self._bulk)))
        while self._bulk and out.total < max_bytes:
            self._take_turn(self._bulk.popleft(), min(turn, MAX_PAYLOAD_BYTES, max_bytes - out.total), out)
        if was_full and self.queued_bytes < MAX_QUEUED_BYTES:
            for stream in self.streams.values():
                stream.writable()
        return out.finish()

    def _take_turn(self, stream: StreamCore, quantum: int, out: _Output) -> None:
        size = min(quantum, stream.pending_bytes)
        if size:
            self.queued_bytes -= size
            out.add(HEADER.pack(0, DATA, 0, stream.stream_id, size))
            for piece in stream.take_pending(size):
                out.add(piece)
        if stream.pending_bytes:
            self._bulk.append(stream)
            return
        stream.is_queued = False
        if stream.end_pending:
            out.add(HEADER.pack(0, WINDOW_UPDATE, stream.end_pending, stream.stream_id, 0))
            stream.end_pending = 0

    def measure_rtt(self) -> None:
        """Send a ping unless one is on its way or enough have been sent lately.

        The shortest round trip counts: the others have waited behind data, and a window that followed them would only
        make them wait longer.
        """
        now = self.now()
        if self._ping_sent_at is None and (
            self._ping_number < _MAX_RTT_SAMPLES or now - self._last_ping >= _RTT_EVERY_S
        ):
            self._ping_sent_at = self._last_ping = now
            self._ping_number = (self._ping_number + 1) & 0xFFFFFFFF
            self.queue_control(PING, SYN, 0, self._ping_number)

    # Receiving.

    def receive(self, data: bytes) -> None:
        """Take in what the peer sent, in pieces of any size. What breaks the protocol ends the connection."""
        try:
            self._receive(data)
        except YamuxError as exc:
            self.fail(str(exc), HEADER.pack(0, GO_AWAY, 0, 0, GO_AWAY_PROTOCOL_ERROR))

    def _receive(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        at, end = 0, len(data)
        while self.failure is None:
            if self._body_left:
                if at == end:
                    return
                size = min(self._body_left, end - at)
                if self._body_stream is not None:
                    self._body_stream.feed(_cut(data, at, at + size))
                at += size
                self._body_received(size)
            elif end - at < HEADER_BYTES:
                self._partial = data[at:]
                return
            else:
                self._frame(*HEADER.unpack_from(data, at))
                at += HEADER_BYTES

    def _body_received(self, size: int) -> None:
        self._body_left -= size
        if not self._body_left:
            stream, self._body_stream = self._body_stream, None
            self._end_flags(stream, self._body_flags)

    def place(self, size: int) -> memoryview | None:
        """The place where the next ``size`` bytes are wanted, if they are payload that somebody waits for."""
        stream = self._body_stream
        return stream.place(size) if stream is not None and size <= self._body_left else None

    def placed(self, size: int) -> None:
        """What :meth:`place` was asked for is in its place."""
        if self._body_stream is not None:
            self._body_stream.placed(size)
        self._body_received(size)

    def _frame(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        if version != 0 or kind > GO_AWAY or flags & ~KNOWN_FLAGS:
            raise YamuxError("The peer broke the multiplexer's protocol: it sent an unknown frame.")
        if kind == PING:
            self._ping(flags, length)
        elif kind == GO_AWAY:
            self.remote_going_away = True
            if length != GO_AWAY_NORMAL:
                self.fail("The peer gave the connection up as broken.")
        else:
            self._stream_frame(kind, flags, stream_id, length)

    def _ping(self, flags: int, number: int) -> None:
        if flags & SYN:
            self.queue_control(PING, ACK, 0, number)
        elif self._ping_sent_at is not None and number == self._ping_number:
            rtt_s = min(self.now() - self._ping_sent_at, _MAX_RTT_S)
            self.rtt_s = rtt_s if self.rtt_s is None else min(self.rtt_s, rtt_s)
            self._ping_sent_at = None

    def _stream_frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if flags & SYN:
            self._accept(stream_id)
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id == 0:
                raise YamuxError("The peer broke the multiplexer's protocol: it sent data outside any stream.")
        elif flags & ACK:
            self.acknowledged(stream)
        if kind == WINDOW_UPDATE:
            if stream is not None:
                stream.credit(length)
                self._end_flags(stream, flags)
            return
        if stream is not None and length > stream.recv_window:
            stream.abort("The peer sent more than the window allows.")
            stream = None
        elif stream is not None and self.unread_bytes + length > _MAX_UNREAD_BYTES:
            stream.abort("Too much lies unread in the streams of this connection.")
            stream = None
        if stream is not None:
            stream.recv_window -= length
        self._body_left = length
        self._body_flags = flags
        self._body_stream = stream
        if not length:
            self._body_stream = None
            self._end_flags(stream, flags)

    def _accept(self, stream_id: int) -> None:
        """A stream that the peer opens."""
        if stream_id == 0 or not self.is_inbound(stream_id) or stream_id <= self._last_inbound_id:
            raise YamuxError(
                "The peer broke the multiplexer's protocol: it opened a stream with an id that it may not use."
            )
        self._last_inbound_id = stream_id
        self.prune()
        if self._inbound >= self._max_inbound:
            self.queue_control(WINDOW_UPDATE, RST, stream_id, 0)
            return
        stream = self._make_stream(stream_id)
        stream.acknowledged = True
        self.streams[stream_id] = stream
        self._inbound += 1
        self.queue_control(WINDOW_UPDATE, ACK, stream_id, 0)
        self.on_inbound(stream)

    def _end_flags(self, stream: S | None, flags: int) -> None:
        if stream is None:
            return
        if flags & FIN:
            stream.fin_received()
        if flags & RST:
            stream.break_off("The stream was reset by the peer.")


class _Output:
    """Collects small frames into messages; large payloads are passed on as they are."""

    __slots__ = ("pieces", "small", "total")

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []
        self.small = bytearray()
        self.total = 0

    def add(self, data: Buffer) -> None:
        size = len(data)
        self.total += size
        if size <= _JOIN_BYTES:
            if len(self.small) + size > NOISE_PLAINTEXT_BYTES:
                self._end_small()
            self.small += data
            return
        self._end_small()
        if size <= NOISE_PLAINTEXT_BYTES:
            self.pieces.append(data)
            return
        view = memoryview(data)
        self.pieces += [view[at : at + NOISE_PLAINTEXT_BYTES] for at in range(0, size, NOISE_PLAINTEXT_BYTES)]

    def _end_small(self) -> None:
        if self.small:
            self.pieces.append(self.small)
            self.small = bytearray()

    def finish(self) -> list[Buffer]:
        self._end_small()
        return self.pieces


def _cut(data: bytes, start: int, end: int) -> Buffer:
    """A part of what came in, without a copy if that keeps little else alive."""
    if end - start == len(data):
        return data
    if 2 * (end - start) >= len(data):
        return memoryview(data)[start:end]
    return data[start:end]


def _nothing() -> None:
    pass


def _nothing_with(_stream: object) -> None:
    pass
