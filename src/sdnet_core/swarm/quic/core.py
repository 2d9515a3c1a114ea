"""aioquic's sans-I/O connection with what libp2p needs, and with limits that hold.

aioquic 1.7.2 raises its receive windows with what *arrives*, so that a reader that pauses makes it store everything;
here they follow what is *read*. It lets the peer open streams in one direction, which libp2p has no use for, and does
not ask a client for a certificate. These places are not public, so :func:`check_version` makes sure of the version.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import datetime
import importlib.metadata
from collections.abc import Callable

from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicConnectionState,
)
from aioquic.quic.packet import QuicFrameType, QuicProtocolVersion
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream as CoreStream
from libp2p.peer.id import ID

from ..hardening import PatchTargetChangedError
from .identity import CertificateError, Credentials, verify_certificate

__all__ = [
    "AIOQUIC_VERSION",
    "ALPN",
    "CONNECTION_WINDOW",
    "STREAM_WINDOW",
    "Core",
    "check_version",
    "make_configuration",
]

AIOQUIC_VERSION = "1.7.2"
"""The one version of aioquic that this module was written for."""
ALPN = "libp2p"
STREAM_WINDOW = 128 * 1024
"""Receive window of a new stream, in bytes."""
CONNECTION_WINDOW = 48 * 1024 * 1024
"""What may lie unread in all streams of one connection, in bytes: 256 streams' windows and what they may grow by."""
IDLE_TIMEOUT_S = 30.0
"""A connection from which nothing has come for this long is gone."""
CONNECTION_ID_BYTES = 8
_DONE = (QuicConnectionState.CLOSING, QuicConnectionState.DRAINING, QuicConnectionState.TERMINATED)


def check_version(version: Callable[[str], str] = importlib.metadata.version) -> None:
    """Check that the installed aioquic is :data:`AIOQUIC_VERSION`.

    :raises PatchTargetChangedError: it is another version.
    """
    installed = version("aioquic")
    if installed != AIOQUIC_VERSION:
        raise PatchTargetChangedError(
            f"sdnet's QUIC was written for aioquic {AIOQUIC_VERSION}, but {installed} is installed. "
            f"Install aioquic=={AIOQUIC_VERSION}."
        )


def make_configuration(credentials: Credentials, *, is_client: bool) -> QuicConfiguration:
    """What our connections are made with."""
    return QuicConfiguration(
        alpn_protocols=[ALPN],
        certificate=credentials.certificate,
        private_key=credentials.private_key,
        cipher_suites=[
            tls.CipherSuite.AES_128_GCM_SHA256,
            tls.CipherSuite.CHACHA20_POLY1305_SHA256,
            tls.CipherSuite.AES_256_GCM_SHA384,
        ],
        congestion_control_algorithm="cubic",
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=IDLE_TIMEOUT_S,
        is_client=is_client,
        max_data=CONNECTION_WINDOW,
        max_stream_data=STREAM_WINDOW,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        # Certificates are checked by libp2p's rules, not by authorities.
        verify_mode=0,
    )


class Core(QuicConnection):
    """One connection without I/O.

    :param max_inbound_streams: streams that the peer may have open at a time; more end the connection.
    :param original_destination_connection_id: a server's, from the client's first packet.
    :param retry_source_connection_id: a server's, if it made the client prove its address.
    """

    def __init__(
        self,
        configuration: QuicConfiguration,
        *,
        max_inbound_streams: int,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._local_max_streams_bidi = Limit(QuicFrameType.MAX_STREAMS_BIDI, "max_streams_bidi", max_inbound_streams)
        self._local_max_streams_uni = Limit(QuicFrameType.MAX_STREAMS_UNI, "max_streams_uni", 0)
        self.remote: ID | None = None
        self._consumed = 0

    # Who the peer is.

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        context = self.tls
        context._request_client_certificate = True
        # aioquic would make a key of each of four kinds for every connection.
        context._supported_groups = [tls.Group.X25519, tls.Group.SECP256R1]
        take = context._set_peer_certificate

        def check(certificate: tls.Certificate) -> None:
            # Before the certificate's key is used for anything.
            try:
                self.remote = verify_certificate(
                    [der for der, _ in certificate.certificates], datetime.datetime.now(datetime.UTC)
                )
            except CertificateError as exc:
                raise tls.AlertBadCertificate(str(exc)) from exc
            take(certificate)

        context._set_peer_certificate = check  # type: ignore[method-assign]

    # Flow control.

    def consumed(self, size: int) -> None:
        """The reader of a stream has taken ``size`` bytes, or nobody ever will."""
        self._consumed += size
        room = self._consumed + CONNECTION_WINDOW
        if room - self._local_max_data.value >= CONNECTION_WINDOW // 4:
            self._local_max_data.value = room

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        """Tell of higher limits; unlike the original it does not raise any."""
        for limit in (self._local_max_data, self._local_max_streams_bidi):
            if limit.value == limit.sent:
                continue
            if limit is self._local_max_streams_bidi and limit.sent - limit.used >= limit.value - limit.sent:
                continue
            frame = builder.start_frame(
                limit.frame_type,
                capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            frame.push_uint_var(limit.value)
            limit.sent = limit.value

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: CoreStream) -> None:
        """Tell of a higher limit of one stream; unlike the original it does not raise any."""
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or stream.receiver.is_finished:
            return
        frame = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        assert stream.stream_id is not None
        frame.push_uint_var(stream.stream_id)
        frame.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local

    # What the library knows and does not tell.

    @property
    def is_confirmed(self) -> bool:
        """Whether both sides know that the handshake is complete."""
        return self._handshake_confirmed

    @property
    def is_done(self) -> bool:
        """Whether the connection is closed or being closed."""
        return self._close_event is not None or self._state in _DONE

    @property
    def close_reason(self) -> str:
        """Why it closes."""
        return self._close_event.reason_phrase if self._close_event is not None else ""

    @property
    def can_open(self) -> bool:
        """Whether the peer lets us open a stream now."""
        return self._local_next_stream_id_bidi // 4 < self._remote_max_streams_bidi

    @property
    def credit(self) -> int:
        """How many bytes the peer takes in all, since the beginning."""
        return self._remote_max_data

    @property
    def round_trip_s(self) -> float:
        """The measured time of a round trip, or the assumed one."""
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else self._configuration.initial_rtt

    @property
    def idle_timeout_s(self) -> float:
        """After how long without a packet the connection is gone."""
        return min(IDLE_TIMEOUT_S, self._remote_max_idle_timeout or IDLE_TIMEOUT_S)

    def stream(self, stream_id: int) -> CoreStream | None:
        """A stream's state, until it is done."""
        return self._streams.get(stream_id)

    def open(self) -> CoreStream:
        """Open a stream, while :attr:`can_open`."""
        return self._get_or_create_stream_for_send(self.get_next_available_stream_id())

    def hurry(self, stream: CoreStream) -> None:
        """Let a stream be the next to send."""
        queue = self._streams_queue
        if queue and queue[0] is not stream and stream in queue:
            queue.remove(stream)
            queue.insert(0, stream)
