"""What lies on the disk of a node, in each mode of its vault."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from sdnet_core import NetworkingCore
from sdnet_core.clock import SystemRandomness
from sdnet_core.storage import KeyFile, Passphrase, Unlock
from sdnet_core.storage.unlock import WrongPassphraseError
from sdnet_core.testing import MemoryDiscovery, MemoryNetwork, memory_node, pair

pytestmark = pytest.mark.anyio

PASSPHRASE = b"correct horse battery staple"


def node(home: Path, name: str, unlock: Unlock, world: tuple[MemoryNetwork, MemoryDiscovery]) -> NetworkingCore:
    """A node on the memory network whose vault opens with this."""
    core = memory_node(home, name, network=world[0], discovery=world[1])
    core._unlock = unlock
    return core


def forms(secret: bytes) -> tuple[bytes, ...]:
    """How a secret might be written down."""
    return secret, secret.hex().encode(), base64.b64encode(secret)


@pytest.mark.parametrize("unlock", [KeyFile(), Passphrase(PASSPHRASE)], ids=["key file", "passphrase"])
async def test_no_secret_lies_in_clear(tmp_path: Path, unlock: Unlock) -> None:
    world = MemoryNetwork(), MemoryDiscovery()
    async with node(tmp_path, "a", unlock, world) as a, node(tmp_path, "b", KeyFile(), world) as b:
        await pair(a, b, SystemRandomness())
        root = a._registry.get(b.device_info.id).device.pairing_root
        assert root is not None
        secrets = [a.identity.seed, root, a._vault.subkey("network"), PASSPHRASE]
        protection = a.status()["storage"]["protection"]
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        assert not [form for secret in secrets for form in forms(secret) if form in content], path
    key_files = [path for path in files if path.name == "vault.key"]
    if isinstance(unlock, KeyFile):
        assert protection == "unprotected"
        assert [path.stat().st_mode & 0o777 for path in key_files] == [0o600]
    else:
        assert protection == "protected"
        assert key_files == []


async def test_a_wrong_passphrase_opens_nothing_and_harms_nothing(tmp_path: Path) -> None:
    world = MemoryNetwork(), MemoryDiscovery()
    async with node(tmp_path, "a", Passphrase(PASSPHRASE), world) as a:
        peer_id = a.identity.peer_id
    with pytest.raises(WrongPassphraseError):
        async with node(tmp_path, "a", Passphrase(b"wrong"), world):
            pass
    async with node(tmp_path, "a", Passphrase(PASSPHRASE), world) as a:
        assert a.identity.peer_id == peer_id
