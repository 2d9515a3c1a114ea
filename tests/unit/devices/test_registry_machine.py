"""Every order of transitions, against a model: what is allowed happens, what is not is refused, nothing is lost."""

from __future__ import annotations

import uuid

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.devices.connection import DeviceConnection
from sdnet_core.devices.records import ConnectionRecord, PairedDevice
from sdnet_core.devices.registry import Connected, DeviceRegistry, Disconnected, Discovered, Paired, Pairing
from sdnet_core.devices.trust import Trust
from sdnet_core.errors import ConflictError, DeviceNotFoundError
from sdnet_core.identity import NetworkIdentity
from tests.unit.devices.test_registry import device, live

IDENTITIES = [NetworkIdentity.generate(SystemRandomness()) for _ in range(3)]
NUMBERS = st.integers(min_value=0, max_value=2)


class RegistryMachine(RuleBasedStateMachine):
    """Three devices and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = DeviceRegistry(SystemClock())
        self.stranger: dict[int, str] = {}
        self.state: dict[int, str] = {}
        self.record: dict[int, PairedDevice] = {}
        self.connection: dict[int, DeviceConnection] = {}
        self.reason: dict[int, str] = {}

    def peer(self, number: int) -> str:
        return IDENTITIES[number].peer_id

    def fresh(self, number: int) -> PairedDevice:
        return device(f"device{number}", identity=IDENTITIES[number], device_id=number + 1)

    @rule(number=NUMBERS)
    def discovered(self, number: int) -> None:
        new = self.registry.add_discovered_peer(self.peer(number), ("/memory/1",))
        assert new == (number not in self.state and number not in self.stranger)
        if number not in self.state:
            self.stranger.setdefault(number, "discovered")

    @rule(number=NUMBERS)
    def start_pairing(self, number: int) -> None:
        if self.stranger.get(number) == "pairing":
            with pytest.raises(ConflictError, match="already"):
                self.registry.start_pairing(self.peer(number), uuid.uuid4())
        else:
            self.registry.start_pairing(self.peer(number), uuid.uuid4())
            self.stranger[number] = "pairing"

    @rule(number=NUMBERS)
    def cancel_pairing(self, number: int) -> None:
        assert self.registry.cancel_pairing(self.peer(number)) == (self.stranger.get(number) == "pairing")
        if self.stranger.get(number) == "pairing":
            if number in self.state:
                del self.stranger[number]
            else:
                self.stranger[number] = "discovered"

    @rule(number=NUMBERS)
    def complete_pairing(self, number: int) -> None:
        record = self.fresh(number)
        if self.state.get(number) == "connected":
            with pytest.raises(ConflictError, match="still connected"):
                self.registry.complete_pairing(record, ConnectionRecord())
            return
        self.registry.complete_pairing(record, ConnectionRecord())
        self.stranger.pop(number, None)
        self.state[number], self.record[number] = "paired", record

    @rule(number=NUMBERS, other=NUMBERS)
    def take_over(self, number: int, other: int) -> None:
        if number == other or number not in self.state:
            return
        thief = device("thief", identity=IDENTITIES[other], device_id=number + 1)
        with pytest.raises(ConflictError, match="claims the identity"):
            self.registry.complete_pairing(thief, ConnectionRecord())

    @rule(number=NUMBERS)
    def restore(self, number: int) -> None:
        if number in self.state:
            with pytest.raises(ConflictError, match="known already"):
                self.registry.restore(self.fresh(number), ConnectionRecord())

    @rule(number=NUMBERS)
    def connect(self, number: int) -> None:
        record = self.record.get(number) or self.fresh(number)
        connection = live(record)
        if number not in self.state:
            with pytest.raises(DeviceNotFoundError):
                self.registry.mark_connected(connection)
        elif self.state[number] == "connected" or record.trust.access is None:
            with pytest.raises(ConflictError):
                self.registry.mark_connected(connection)
        else:
            self.registry.mark_connected(connection)
            self.state[number], self.connection[number] = "connected", connection

    @rule(number=NUMBERS, current=st.booleans(), reason=st.sampled_from(["cut", "silent"]))
    def disconnect(self, number: int, current: bool, reason: str) -> None:
        is_connected = self.state.get(number) == "connected"
        connection = self.connection[number] if current and is_connected else live(self.fresh(number))
        assert self.registry.mark_disconnected(connection, reason) == (current and is_connected)
        if current and is_connected:
            self.state[number], self.reason[number] = "disconnected", reason

    @rule(number=NUMBERS, trust=st.sampled_from(Trust), pending=st.booleans(), anew=st.booleans())
    def update(self, number: int, trust: Trust, pending: bool, anew: bool) -> None:
        old = self.record.get(number)
        if number not in self.state or old is None:
            with pytest.raises(DeviceNotFoundError):
                self.registry.update(self.fresh(number))
            return
        changed = msgspec.structs.replace(old.trusted(trust), pending=pending)
        if anew:
            changed = msgspec.structs.replace(changed, pairing_id=bytes(16))
        comes_back = old.trust is Trust.REVOKED and trust is not Trust.REVOKED
        comes_back |= old.trust is Trust.EXPIRED and trust in (Trust.TRUSTED, Trust.VERIFIED)
        loses_all = self.state[number] == "connected" and trust.access is None
        if anew or comes_back or loses_all or (pending and not old.pending):
            with pytest.raises(ConflictError):
                self.registry.update(changed)
        else:
            self.registry.update(changed)
            self.record[number] = changed

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        device_id = uuid.UUID(int=number + 1)
        if number not in self.state:
            with pytest.raises(DeviceNotFoundError):
                self.registry.remove(device_id)
        elif self.state[number] == "connected":
            with pytest.raises(ConflictError, match="still connected"):
                self.registry.remove(device_id)
        else:
            assert self.registry.remove(device_id) == self.record.pop(number)
            del self.state[number]

    @invariant()
    def the_registry_is_the_model(self) -> None:
        kinds = {"paired": Paired, "connected": Connected, "disconnected": Disconnected}
        assert len(self.registry.devices()) == len(self.state)
        for number in range(3):
            state = self.registry.by_peer(self.peer(number))
            if number in self.state:
                assert state is not None
                assert type(state) is kinds[self.state[number]]
                assert state.device == self.record[number]
                assert state == self.registry.get(uuid.UUID(int=number + 1))
                if isinstance(state, Disconnected):
                    assert state.reason == self.reason[number]
                if isinstance(state, Connected):
                    assert state.live is self.connection[number]
                    assert state.device.trust.access is not None
            else:
                assert state is None
            stranger = self.registry.stranger(self.peer(number))
            kind = {"discovered": Discovered, "pairing": Pairing}.get(self.stranger.get(number, ""))
            assert kind is None if stranger is None else type(stranger) is kind


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
