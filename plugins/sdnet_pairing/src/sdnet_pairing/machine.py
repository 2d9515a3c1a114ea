"""The pairing conversation of both roles as state machines that do no I/O.

Whoever drives a machine gives it `Event` objects and carries out the `Command` objects that it answers with, in order.
A conversation that goes well, initiator on the left::

    Received(PairingRequest)  → CodeProven, Send(Challenge)
    Received(Response)        → ConsumeCode        CodeConsumed → AskPerson
    PersonAccepted            → StorePairing       Stored       → Send(Complete)
    Received(Confirm)         → Finished

and the joiner::

    Start                     → Send(PairingRequest)
    Received(Challenge)       → CodeProven, Send(Response)
    Received(Complete)        → StorePairing       Stored       → Send(Confirm), Finished

Everything else ends in one `Fail`. The protocol is described in ``docs/protocol/pairing.md``.
"""

from __future__ import annotations

import hmac
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from sdnet_core import DeviceInfo, is_small_order, public_key_from_peer_id, verify
from sdnet_core.errors import AuthenticationFailedError, NetworkingError, SerializationError
from sdnet_core.wire import Message, decode, encode

from .code import CodeKeys
from .keys import SUITES, VERSIONS, Ephemeral, KeySchedule, Transcript, mac
from .messages import (
    MAX_MESSAGE_BYTES,
    Challenge,
    ChallengePayload,
    Complete,
    CompletePayload,
    Confirm,
    ConfirmPayload,
    PairingRequest,
    Refusal,
    RefusalReason,
    Response,
    ResponsePayload,
)
from .steps import (
    AskPerson,
    CodeConsumed,
    CodeProven,
    CodeUnavailable,
    Command,
    ConsumeCode,
    Event,
    Fail,
    Failure,
    Finished,
    LocalSide,
    Pairing,
    PersonAccepted,
    PersonRefused,
    Received,
    Send,
    Start,
    Stored,
    StoreFailed,
    StorePairing,
)

__all__ = ["PURPOSE", "InitiatorMachine", "JoinerMachine", "Machine"]

PURPOSE = "pairing"
"""Purpose of every signature here: ``"sdnet/pairing/v1\\0" ‖ …``."""
_NO_PAIRING = bytes(16)


class _State(Enum):
    START = auto()
    AWAIT_REQUEST = auto()
    AWAIT_CHALLENGE = auto()
    AWAIT_RESPONSE = auto()
    CONSUMING = auto()
    ASKING = auto()
    AWAIT_COMPLETE = auto()
    STORING = auto()
    AWAIT_CONFIRM = auto()
    FINISHED = auto()
    FAILED = auto()


class Machine(ABC):
    """What both roles share: transcript, keys, and how things end.

    :param local: this device.
    :param remote_peer_id: the other side, as Noise has authenticated it.
    """

    _state: _State

    def __init__(self, local: LocalSide, remote_peer_id: str) -> None:
        self._local = local
        self._remote_peer_id = remote_peer_id
        self._transcript = Transcript()
        self._keys: KeySchedule
        self._code: CodeKeys
        self._suite = 0
        self._root = b""
        self._pairing: Pairing | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.name.lower()}>"

    @property
    def ended(self) -> bool:
        """Whether the conversation has ended, one way or the other."""
        return self._state in (_State.FINISHED, _State.FAILED)

    def handle(self, event: Event) -> list[Command]:
        """Take one event; once the conversation has ended it answers nothing."""
        if self.ended:
            return []
        try:
            return self._handle(event)
        except AuthenticationFailedError:
            return self._fail(Failure.AUTHENTICATION)
        except SerializationError:
            return self._fail(Failure.PROTOCOL)

    @abstractmethod
    def _handle(self, event: Event) -> list[Command]: ...

    def _fail(self, failure: Failure, reason: RefusalReason | None = None, *, refuse: bool = True) -> list[Command]:
        self._state = _State.FAILED
        return [*([Send(Refusal())] if refuse else []), Fail(failure, reason)]

    def _unexpected(self, event: Event) -> RuntimeError:
        return RuntimeError(f"{type(event).__name__} does not belong to the state {self._state.name}")

    def _introduce(self, initiator: tuple[str, bytes], joiner: tuple[str, bytes]) -> None:
        self._transcript.add("protocol", b"/sdnet/pairing/1")
        for role, (peer_id, public_key) in (("initiator", initiator), ("joiner", joiner)):
            self._transcript.add(role, peer_id.encode(), public_key)

    def _remote_key(self) -> bytes:
        public_key = public_key_from_peer_id(self._remote_peer_id)
        if is_small_order(public_key):
            raise AuthenticationFailedError("The device key of the other side is not acceptable.")
        return public_key

    def _local_peer(self) -> tuple[str, bytes]:
        return self._local.device.peer_id, self._local.device.public_key

    def _add_request(self, request: PairingRequest) -> None:
        self._transcript.add("versions", *_numbers(request.versions)).add("suites", *_numbers(request.suites))
        self._transcript.add("request", request.session_id, request.nonce, request.ephemeral)

    def _add_challenge(self, request: PairingRequest, version: int, suite: int, challenge: bytes, eph: bytes) -> None:
        self._transcript.add("request mac", request.mac)
        self._transcript.add("chosen", *_numbers((version, suite))).add("challenge", challenge, eph)

    def _request_mac(self) -> bytes:
        return mac(self._code.psk, "request", self._transcript.digest())

    def _described(self, device: DeviceInfo, addresses: tuple[str, ...]) -> Transcript:
        return self._transcript.fork().add("device", encode(device)).add("addresses", *(a.encode() for a in addresses))

    def _check_device(self, device: DeviceInfo, signed: bytes, signature: bytes) -> None:
        if device.public_key != self._remote_key() or device.device_id == self._local.device.device_id:
            raise AuthenticationFailedError("The other side claims to be another device than it is.")
        verify(device.public_key, PURPOSE, signed, signature)

    def _derive_root(self) -> None:
        self._root = self._keys.key("root", self._transcript.digest())

    def _complete_mac(self, success: bool, reason: RefusalReason | None, pairing_id: bytes) -> bytes:
        point = self._transcript.fork().add("outcome", b"\1" if success else b"\0", (reason or "").encode(), pairing_id)
        return mac(self._root, "initiator confirmation", point.digest())

    def _response_mac(self, described: Transcript, signature: bytes) -> bytes:
        point = described.fork().add("signature", signature).digest()
        return mac(self._keys.key("joiner confirmation", self._transcript.digest()), "joiner confirmation", point)

    def _seal(self, label: str, payload: Message) -> bytes:
        box = self._keys.seal(self._suite, label, self._transcript.digest(), encode(payload))
        self._transcript.add(label, box)
        return box

    def _open(self, label: str, box: bytes) -> bytes:
        return self._keys.open(self._suite, label, self._transcript.digest(), box)


class InitiatorMachine(Machine):
    """The device that shows the code, in one conversation with one peer.

    :param find_code: the keys of an open, unexpired, unused session with this id, or None.
    """

    def __init__(
        self, local: LocalSide, remote_peer_id: str, find_code: Callable[[uuid.UUID], CodeKeys | None]
    ) -> None:
        super().__init__(local, remote_peer_id)
        self._find_code = find_code
        self._state = _State.AWAIT_REQUEST
        self._challenge = b""
        self._response: ResponsePayload

    def _handle(self, event: Event) -> list[Command]:
        match self._state, event:
            case _State.AWAIT_REQUEST, Received(payload):
                return self._on_request(payload)
            case _State.AWAIT_RESPONSE, Received(payload):
                return self._on_response(_receive(payload, Response | Refusal))
            case _State.AWAIT_CONFIRM, Received(payload):
                return self._on_confirm(_receive(payload, Confirm | Refusal))
            case _, Received():
                return self._fail(Failure.PROTOCOL)
            case _State.CONSUMING, CodeConsumed():
                self._state = _State.ASKING
                return [AskPerson(self._response.device)]
            case _State.CONSUMING, CodeUnavailable(reason):
                return self._deny(reason)
            case _State.ASKING, PersonAccepted():
                return self._on_accepted()
            case _State.ASKING, PersonRefused(reason):
                return self._deny(reason)
            case _State.STORING, Stored():
                assert self._pairing is not None
                self._state = _State.AWAIT_CONFIRM
                return [self._complete(True, None, self._pairing.pairing_id.bytes)]
            case _State.STORING, StoreFailed():
                return self._deny(RefusalReason.FAILED, Failure.STORAGE)
        raise self._unexpected(event)

    def _on_request(self, payload: bytes) -> list[Command]:
        # Whatever is wrong up to here gets one and the same answer.
        try:
            request: PairingRequest = _receive(payload, PairingRequest)
            self._introduce(self._local_peer(), (self._remote_peer_id, self._remote_key()))
            self._add_request(request)
            session_id = uuid.UUID(bytes=request.session_id)
            code = self._find_code(session_id)
            # Without a session the same work is done with a key that nobody knows.
            self._code = code or CodeKeys(session_id, b"", b"", self._local.random_bytes(32))
            if not hmac.compare_digest(self._request_mac(), request.mac) or code is None:
                return self._fail(Failure.UNPROVEN)
            version = next(v for v in VERSIONS if v in request.versions)
            suite = next(s for s in SUITES if s in request.suites)
            ephemeral = Ephemeral(self._local.random_bytes(32))
            self._keys = KeySchedule(ephemeral.exchange(request.ephemeral), code.psk)
        except (NetworkingError, StopIteration):
            return self._fail(Failure.UNPROVEN)
        self._suite = suite
        self._challenge = self._local.random_bytes(32)
        self._add_challenge(request, version, suite, self._challenge, ephemeral.public)
        signed = b"challenge" + self._described(self._local.device, self._local.addresses).digest()
        box = self._seal(
            "challenge box",
            ChallengePayload(
                device=self._local.device, addresses=self._local.addresses, signature=self._local.sign(signed)
            ),
        )
        self._state = _State.AWAIT_RESPONSE
        message = Challenge(
            version=version, suite=suite, challenge=self._challenge, ephemeral=ephemeral.public, box=box
        )
        return [CodeProven(session_id), Send(message)]

    def _on_response(self, message: Response | Refusal) -> list[Command]:
        if isinstance(message, Refusal):
            return self._fail(Failure.REFUSED, refuse=False)
        plaintext = self._open("response box", message.box)
        response: ResponsePayload = _receive(plaintext, ResponsePayload)
        described = self._described(response.device, response.addresses)
        self._check_device(response.device, b"response" + self._challenge + described.digest(), response.signature)
        if not hmac.compare_digest(self._response_mac(described, response.signature), response.confirmation):
            raise AuthenticationFailedError("The other side did not confirm its key.")
        self._transcript.add("response box", message.box)
        self._response = response
        self._derive_root()
        self._state = _State.CONSUMING
        return [ConsumeCode(response.device)]

    def _on_accepted(self) -> list[Command]:
        self._pairing = Pairing(
            device=self._response.device,
            addresses=self._response.addresses,
            session_id=self._code.session_id,
            pairing_id=uuid.UUID(bytes=self._local.random_bytes(16), version=4),
            root=self._root,
        )
        self._state = _State.STORING
        return [StorePairing(self._pairing)]

    def _on_confirm(self, message: Confirm | Refusal) -> list[Command]:
        assert self._pairing is not None
        if isinstance(message, Refusal):
            return self._fail(Failure.REFUSED, refuse=False)
        confirm: ConfirmPayload = _receive(self._open("confirm box", message.box), ConfirmPayload)
        if confirm.pairing_id != self._pairing.pairing_id.bytes:
            raise AuthenticationFailedError("The other side confirmed another pairing.")
        self._state = _State.FINISHED
        return [Finished(self._pairing)]

    def _deny(self, reason: RefusalReason, failure: Failure = Failure.DENIED) -> list[Command]:
        message = self._complete(False, reason, _NO_PAIRING)
        self._state = _State.FAILED
        return [message, Fail(failure, reason)]

    def _complete(self, success: bool, reason: RefusalReason | None, pairing_id: bytes) -> Send:
        payload = CompletePayload(
            success=success,
            reason=reason,
            pairing_id=pairing_id,
            confirmation=self._complete_mac(success, reason, pairing_id),
        )
        return Send(Complete(box=self._seal("complete box", payload)))


class JoinerMachine(Machine):
    """The device on which the code was typed, in one conversation with one peer.

    :param code: the keys that follow from the code.
    """

    def __init__(self, local: LocalSide, remote_peer_id: str, code: CodeKeys) -> None:
        super().__init__(local, remote_peer_id)
        self._code = code
        self._state = _State.START
        self._challenge_payload: ChallengePayload

    def _handle(self, event: Event) -> list[Command]:
        match self._state, event:
            case _State.START, Start():
                return self._on_start()
            case _State.AWAIT_CHALLENGE, Received(payload):
                return self._on_challenge(_receive(payload, Challenge | Refusal))
            case _State.AWAIT_COMPLETE, Received(payload):
                return self._on_complete(_receive(payload, Complete | Refusal))
            case _, Received():
                return self._fail(Failure.PROTOCOL)
            case _State.STORING, Stored():
                return self._on_stored()
            case _State.STORING, StoreFailed():
                return self._fail(Failure.STORAGE)
        raise self._unexpected(event)

    def _on_start(self) -> list[Command]:
        self._introduce((self._remote_peer_id, self._remote_key()), self._local_peer())
        self._ephemeral = Ephemeral(self._local.random_bytes(32))
        unproven = PairingRequest(
            versions=VERSIONS,
            suites=SUITES,
            session_id=self._code.session_id.bytes,
            nonce=self._local.random_bytes(32),
            ephemeral=self._ephemeral.public,
            mac=bytes(32),
        )
        self._add_request(unproven)
        self._request = PairingRequest(
            versions=unproven.versions,
            suites=unproven.suites,
            session_id=unproven.session_id,
            nonce=unproven.nonce,
            ephemeral=unproven.ephemeral,
            mac=self._request_mac(),
        )
        self._state = _State.AWAIT_CHALLENGE
        return [Send(self._request)]

    def _on_challenge(self, message: Challenge | Refusal) -> list[Command]:
        if isinstance(message, Refusal):
            return self._fail(Failure.REFUSED, refuse=False)
        if message.version not in self._request.versions or message.suite not in self._request.suites:
            raise SerializationError("The other side chose a version or suite that was not offered.")
        self._keys = KeySchedule(self._ephemeral.exchange(message.ephemeral), self._code.psk)
        self._suite = message.suite
        self._add_challenge(self._request, message.version, message.suite, message.challenge, message.ephemeral)
        plaintext = self._open("challenge box", message.box)
        payload: ChallengePayload = _receive(plaintext, ChallengePayload)
        described = self._described(payload.device, payload.addresses)
        self._check_device(payload.device, b"challenge" + described.digest(), payload.signature)
        self._transcript.add("challenge box", message.box)
        self._challenge_payload = payload
        response = self._respond(message.challenge)
        self._derive_root()
        self._state = _State.AWAIT_COMPLETE
        return [CodeProven(self._code.session_id, payload.device), Send(response)]

    def _respond(self, challenge: bytes) -> Response:
        described = self._described(self._local.device, self._local.addresses)
        signature = self._local.sign(b"response" + challenge + described.digest())
        payload = ResponsePayload(
            device=self._local.device,
            addresses=self._local.addresses,
            signature=signature,
            confirmation=self._response_mac(described, signature),
        )
        return Response(box=self._seal("response box", payload))

    def _on_complete(self, message: Complete | Refusal) -> list[Command]:
        if isinstance(message, Refusal):
            return self._fail(Failure.REFUSED, refuse=False)
        plaintext = self._open("complete box", message.box)
        payload: CompletePayload = _receive(plaintext, CompletePayload)
        expected = self._complete_mac(payload.success, payload.reason, payload.pairing_id)
        if not hmac.compare_digest(expected, payload.confirmation):
            raise AuthenticationFailedError("The other side did not confirm its key.")
        if payload.success != (payload.reason is None) or payload.success == (payload.pairing_id == _NO_PAIRING):
            raise SerializationError("The other side's answer contradicts itself.")
        self._transcript.add("complete box", message.box)
        if not payload.success:
            return self._fail(Failure.DENIED, payload.reason, refuse=False)
        self._pairing = Pairing(
            device=self._challenge_payload.device,
            addresses=self._challenge_payload.addresses,
            session_id=self._code.session_id,
            pairing_id=uuid.UUID(bytes=payload.pairing_id),
            root=self._root,
        )
        self._state = _State.STORING
        return [StorePairing(self._pairing)]

    def _on_stored(self) -> list[Command]:
        assert self._pairing is not None
        box = self._seal("confirm box", ConfirmPayload(pairing_id=self._pairing.pairing_id.bytes))
        self._state = _State.FINISHED
        return [Send(Confirm(box=box)), Finished(self._pairing)]


def _numbers(values: tuple[int, ...]) -> tuple[bytes, ...]:
    return tuple(value.to_bytes(2, "big") for value in values)


def _receive(payload: bytes, type_: Any) -> Any:
    return decode(payload, type_, max_bytes=MAX_MESSAGE_BYTES)
