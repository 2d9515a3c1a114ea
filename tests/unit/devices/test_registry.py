import uuid

import pytest

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.devices.connection import DeviceConnection
from sdnet_core.devices.records import ConnectionRecord, PairedDevice
from sdnet_core.devices.registry import Connected, DeviceRegistry, Disconnected, Discovered, Paired, Pairing
from sdnet_core.devices.trust import Trust
from sdnet_core.errors import ConflictError, DeviceNotFoundError
from sdnet_core.identity import NetworkIdentity


class Session:
    """As much of a session as the registry looks at."""

    def __init__(self, peer_id: str) -> None:
        self.peer_id = peer_id
        self.role = None


def device(name: str = "phone", *, identity: NetworkIdentity | None = None, device_id: int = 1) -> PairedDevice:
    identity = identity or NetworkIdentity.generate(SystemRandomness())
    return PairedDevice(
        info=identity.device_info(uuid.UUID(int=device_id), name, "0.1"),
        pairing_id=uuid.uuid4().bytes,
        pairing_root=bytes(32),
        paired_at=1.0,
    )


def live(paired: PairedDevice) -> DeviceConnection:
    return DeviceConnection(
        device_id=paired.device_id,
        session=Session(paired.peer_id),  # type: ignore[arg-type]
        control=None,  # type: ignore[arg-type]
        address=None,
    )


@pytest.fixture
def registry() -> DeviceRegistry:
    return DeviceRegistry(SystemClock())


def test_the_life_of_a_device(registry: DeviceRegistry) -> None:
    phone = device()
    assert registry.add_discovered_peer(phone.peer_id, ("/memory/1",))
    assert not registry.add_discovered_peer(phone.peer_id, ("/memory/1",))
    assert isinstance(registry.strangers()[0], Discovered)
    registry.start_pairing(phone.peer_id, uuid.uuid4())
    assert isinstance(registry.strangers()[0], Pairing)
    registry.complete_pairing(phone, ConnectionRecord())
    assert registry.strangers() == ()
    assert isinstance(registry.get(phone.device_id), Paired)
    connection = live(phone)
    registry.mark_connected(connection)
    assert isinstance(registry.get(phone.device_id), Connected)
    assert registry.mark_disconnected(connection, "cable cut")
    state = registry.get(phone.device_id)
    assert isinstance(state, Disconnected)
    assert state.reason == "cable cut"
    registry.mark_connected(live(phone))
    assert isinstance(registry.by_peer(phone.peer_id), Connected)


def test_a_pairing_that_fails_leaves_the_peer_discovered(registry: DeviceRegistry) -> None:
    registry.start_pairing("peer", uuid.uuid4())
    with pytest.raises(ConflictError):
        registry.start_pairing("peer", uuid.uuid4())
    registry.cancel_pairing("peer")
    assert isinstance(registry.strangers()[0], Discovered)


def test_the_end_of_an_old_connection_does_not_touch_the_new_one(registry: DeviceRegistry) -> None:
    phone = device()
    registry.restore(phone, ConnectionRecord())
    old, new = live(phone), live(phone)
    registry.mark_connected(old)
    with pytest.raises(ConflictError):
        registry.mark_connected(new)
    registry.mark_disconnected(old, "replaced")
    registry.mark_connected(new)
    assert not registry.mark_disconnected(old, "late")
    assert isinstance(registry.get(phone.device_id), Connected)


@pytest.mark.parametrize("trust", [Trust.EXPIRED, Trust.REVOKED])
def test_a_device_without_trust_is_never_connected(registry: DeviceRegistry, trust: Trust) -> None:
    phone = device()
    registry.restore(
        PairedDevice(**{**{f: getattr(phone, f) for f in phone.__struct_fields__}, "trust": trust}), ConnectionRecord()
    )
    with pytest.raises(ConflictError, match=str(trust)):
        registry.mark_connected(live(phone))


def test_nobody_takes_over_another_devices_identity(registry: DeviceRegistry) -> None:
    mine = NetworkIdentity.generate(SystemRandomness())
    registry.complete_pairing(device("a", identity=mine, device_id=1), ConnectionRecord())
    with pytest.raises(ConflictError):
        registry.complete_pairing(device("same id, other key", device_id=1), ConnectionRecord())
    with pytest.raises(ConflictError):
        registry.complete_pairing(device("same key, other id", identity=mine, device_id=2), ConnectionRecord())
    registry.complete_pairing(device("paired anew", identity=mine, device_id=1), ConnectionRecord())
    assert [s.device.info.name for s in registry.devices()] == ["paired anew"]


def test_a_connected_device_is_neither_repaired_nor_removed(registry: DeviceRegistry) -> None:
    mine = NetworkIdentity.generate(SystemRandomness())
    phone = device(identity=mine)
    registry.restore(phone, ConnectionRecord())
    connection = live(phone)
    registry.mark_connected(connection)
    with pytest.raises(ConflictError):
        registry.complete_pairing(device(identity=mine), ConnectionRecord())
    with pytest.raises(ConflictError):
        registry.remove(phone.device_id)
    registry.mark_disconnected(connection, "")
    registry.remove(phone.device_id)
    with pytest.raises(DeviceNotFoundError):
        registry.get(phone.device_id)
    assert registry.by_peer(phone.peer_id) is None


def test_finding_by_name_id_and_prefix(registry: DeviceRegistry) -> None:
    for number, name in enumerate(["Laptop", "phone", "phablet"], start=1):
        registry.restore(device(name, device_id=number << 96), ConnectionRecord())
    assert registry.find("laptop").device.info.name == "Laptop"
    assert registry.find("La").device.info.name == "Laptop"
    assert registry.find("00000002").device.info.name == "phone"
    assert registry.find(str(uuid.UUID(int=3 << 96))).device.info.name == "phablet"
    with pytest.raises(DeviceNotFoundError, match=r"fits several devices: phablet .* phone"):
        registry.find("ph")
    with pytest.raises(DeviceNotFoundError, match="Paired: Laptop, phablet, phone"):
        registry.find("tv")
    with pytest.raises(DeviceNotFoundError):
        registry.find("")


def test_strangers_are_bounded(registry: DeviceRegistry) -> None:
    for number in range(2000):
        registry.add_discovered_peer(f"peer{number}", ())
    assert len(registry.strangers()) == 1024
    assert registry.strangers()[-1].peer_id == "peer1999"
