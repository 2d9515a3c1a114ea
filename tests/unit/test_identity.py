import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import AuthenticationFailedError, SerializationError
from sdnet_core.identity import (
    DeviceInfo,
    Fingerprint,
    NetworkIdentity,
    is_small_order,
    peer_id_from_public_key,
    public_key_from_peer_id,
    verify,
)
from sdnet_core.wire import decode, encode

SEED = bytes(range(32))
# All encodings of points of small order, canonical and not (RFC 8032 arithmetic; the list of libsodium and others).
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def test_the_peer_id_is_the_one_libp2p_derives() -> None:
    crypto = pytest.importorskip("sdnet_core.swarm.libp2p")  # puts the stand-in for fastecdsa in place
    assert crypto is not None
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    identity = NetworkIdentity(SEED)
    assert identity.peer_id == str(ID.from_pubkey(create_new_key_pair(SEED).public_key))
    assert public_key_from_peer_id(identity.peer_id) == identity.public_key


@given(st.binary(min_size=32, max_size=32))
def test_peer_ids_carry_their_key(key: bytes) -> None:
    assert public_key_from_peer_id(peer_id_from_public_key(key)) == key


@pytest.mark.parametrize("text", ["", "12D3", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "0OIl", "é", "1" * 400])
def test_other_peer_ids_are_refused(text: str) -> None:
    with pytest.raises(SerializationError):
        public_key_from_peer_id(text)


def test_a_signature_serves_one_purpose_only() -> None:
    identity = NetworkIdentity(SEED)
    signature = identity.sign("pairing", b"message")
    verify(identity.public_key, "pairing", b"message", signature)
    for purpose, message in [("session", b"message"), ("pairing", b"messagf"), ("pairing", b"")]:
        with pytest.raises(AuthenticationFailedError):
            verify(identity.public_key, purpose, message, signature)
    with pytest.raises(AuthenticationFailedError):
        verify(identity.public_key, "pairing", b"message", signature[:-1])


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_small_order_keys_are_refused(key: str) -> None:
    assert is_small_order(bytes.fromhex(key))
    with pytest.raises(AuthenticationFailedError):
        verify(bytes.fromhex(key), "pairing", b"x", b"\x01" + b"\0" * 63)


def test_real_keys_are_not_taken_for_small_ones() -> None:
    for _ in range(50):
        assert not is_small_order(NetworkIdentity.generate(SystemRandomness()).public_key)


def test_the_fingerprint_is_stable_and_pronounceable() -> None:
    fingerprint = Fingerprint.of(NetworkIdentity(SEED).public_key)
    assert fingerprint == NetworkIdentity(SEED).fingerprint
    assert fingerprint.hex == "3ac1 e751 2328 f779 dfa7"
    assert fingerprint.words == "gorad-vitid-fasom-zitun-tuvol"


def test_device_info_refuses_text_that_a_terminal_would_act_on() -> None:
    info = NetworkIdentity(SEED).device_info(uuid.UUID(int=1), "laptop", "0.1")
    assert decode(encode(info), DeviceInfo) == info
    for name in ("\x1b[31mred", "a\nb", "\u202eevil", "", "x" * 65):
        fields = {"t": 1, "device_id": b"i" * 16, "name": name, "os": "", "version": "", "public_key": b"k" * 32}
        with pytest.raises(SerializationError):
            decode(encode(fields), DeviceInfo)


def test_the_private_key_does_not_show() -> None:
    identity = NetworkIdentity(SEED)
    assert SEED.hex() not in repr(identity)
    assert repr(SEED) not in repr(identity)
