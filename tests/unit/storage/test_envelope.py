"""The sealed file format."""

from __future__ import annotations

import hashlib
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import StorageError
from sdnet_core.storage.atomic import DamagedError
from sdnet_core.storage.envelope import (
    ARGON2ID,
    HKDF_SHA256,
    MAGIC,
    OVERHEAD_BYTES,
    PBKDF2_SHA256,
    READERS,
    Kdf,
    KdfParameters,
    Mode,
    NewerFormatError,
    WrongKeyError,
    read_header,
    seal,
    unseal,
)

RANDOMNESS = SystemRandomness()
KEY = bytes(range(32))
QUICK = KdfParameters(Kdf.PBKDF2_SHA256, iterations=100_000)
QUICK_ARGON2 = KdfParameters(Kdf.ARGON2ID, iterations=2, memory_kib=19 << 10, lanes=1)


def seal_with_key(plaintext: bytes, key: bytes = KEY, context: bytes = b"name", stored_at: float = 0) -> bytes:
    return seal(
        plaintext,
        key,
        mode=Mode.SUBKEY,
        kdf=HKDF_SHA256,
        context=context,
        stored_at=stored_at,
        randomness=RANDOMNESS,
    )


def seal_with_passphrase(plaintext: bytes, kdf: KdfParameters) -> bytes:
    return seal(plaintext, b"secret", mode=Mode.PASSPHRASE, kdf=kdf, context=b"", stored_at=0, randomness=RANDOMNESS)


def open_with_key(data: bytes, key: bytes = KEY, context: bytes = b"name") -> bytes:
    return unseal(data, key, mode=Mode.SUBKEY, context=context)


def with_checksum(body: bytes) -> bytes:
    """What somebody who knows the format would do to hide a change."""
    return body + hashlib.sha256(body).digest()


def with_header(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    body = bytearray(data[:-32])
    struct.pack_into(layout, body, offset, *values)
    return with_checksum(bytes(body))


@given(plaintext=st.binary(max_size=2000), key=st.binary(min_size=32, max_size=32), context=st.binary(max_size=50))
def test_what_was_sealed_opens(plaintext: bytes, key: bytes, context: bytes) -> None:
    sealed = seal_with_key(plaintext, key, context)
    assert open_with_key(sealed, key, context) == plaintext
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES


@pytest.mark.parametrize("kdf", [QUICK, QUICK_ARGON2], ids=["pbkdf2", "argon2id"])
def test_what_was_sealed_under_a_passphrase_opens(kdf: KdfParameters) -> None:
    sealed = seal_with_passphrase(b"data", kdf)
    assert unseal(sealed, b"secret", mode=Mode.PASSPHRASE, context=b"") == b"data"
    with pytest.raises(WrongKeyError):
        unseal(sealed, b"Secret", mode=Mode.PASSPHRASE, context=b"")
    assert read_header(sealed).kdf == kdf


def test_the_defaults_are_the_promised_ones() -> None:
    assert (PBKDF2_SHA256.kdf, PBKDF2_SHA256.iterations) == (Kdf.PBKDF2_SHA256, 600_000)
    assert (ARGON2ID.kdf, ARGON2ID.memory_kib) == (Kdf.ARGON2ID, 64 * 1024)
    header = read_header(seal_with_key(b""))
    assert (len(header.salt), len(header.nonce)) == (32, 12)


def test_no_two_files_share_salt_or_nonce() -> None:
    headers = [read_header(seal_with_key(b"same")) for _ in range(50)]
    assert len({header.salt for header in headers}) == len({header.nonce for header in headers}) == 50


def test_every_flipped_bit_is_damage() -> None:
    sealed = seal_with_key(b"some plaintext")
    for index in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[index] ^= 1 << bit
            with pytest.raises(DamagedError):
                open_with_key(bytes(changed))


def test_every_flipped_bit_is_refused_although_the_checksum_was_made_to_fit() -> None:
    body = seal_with_key(b"some plaintext", stored_at=1_700_000_000)[:-32]
    for index in range(len(body)):
        for bit in range(8):
            changed = bytearray(body)
            changed[index] ^= 1 << bit
            with pytest.raises(StorageError):
                open_with_key(with_checksum(bytes(changed)))


def test_every_flipped_byte_of_a_passphrase_file_is_damage_and_costs_no_key_derivation() -> None:
    sealed = seal_with_passphrase(b"data", QUICK)
    started = time.process_time()
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 0xFF
        with pytest.raises(DamagedError):
            unseal(bytes(changed), b"secret", mode=Mode.PASSPHRASE, context=b"")
    derivation = time.process_time()
    unseal(sealed, b"secret", mode=Mode.PASSPHRASE, context=b"")
    assert derivation - started < len(sealed) * (time.process_time() - derivation) / 2


@pytest.mark.parametrize("index", [28, 60, 68, 75, 80, -33, -49])
def test_forged_changes_of_a_passphrase_file_are_refused(index: int) -> None:
    body = bytearray(seal_with_passphrase(b"data", QUICK)[:-32])
    body[index] ^= 1
    with pytest.raises(StorageError):
        unseal(with_checksum(bytes(body)), b"secret", mode=Mode.PASSPHRASE, context=b"")


@given(data=st.binary(max_size=400), start=st.sampled_from([b"", MAGIC, MAGIC + b"\x00\x01"]), fits=st.booleans())
def test_rubbish_is_damage_and_nothing_else(data: bytes, start: bytes, fits: bool) -> None:
    rubbish = with_checksum(start + data) if fits else start + data
    with pytest.raises((DamagedError, NewerFormatError)):
        open_with_key(rubbish)


@given(cut=st.integers(0, OVERHEAD_BYTES + 99), fits=st.booleans())
def test_truncated_files_are_damage(cut: int, fits: bool) -> None:
    sealed = seal_with_key(bytes(100))[:cut]
    with pytest.raises(DamagedError):
        open_with_key(with_checksum(sealed) if fits and cut < OVERHEAD_BYTES + 68 else sealed)


def test_trailing_bytes_are_damage() -> None:
    sealed = seal_with_key(b"data")
    for changed in (sealed + b"\x00", with_checksum(sealed[:-32] + b"\x00")):
        with pytest.raises(DamagedError):
            open_with_key(changed)


def test_another_key_context_or_mode_is_refused() -> None:
    sealed = seal_with_key(b"data")
    with pytest.raises(WrongKeyError):
        open_with_key(sealed, key=bytes(32))
    with pytest.raises(WrongKeyError):
        open_with_key(sealed, context=b"other")
    with pytest.raises(DamagedError, match="mode"):
        unseal(sealed, KEY, mode=Mode.KEY_FILE, context=b"name")


def test_a_newer_format_is_told_apart_from_damage() -> None:
    sealed = seal_with_key(b"data")
    with pytest.raises(NewerFormatError, match=r"format 2; .* up to 1\. Update"):
        open_with_key(with_header(sealed, 8, ">H", 2))
    with pytest.raises(DamagedError, match="format 0"):
        open_with_key(with_header(sealed, 8, ">H", 0))


def test_an_older_format_opens_with_its_reader() -> None:
    old = with_checksum(MAGIC + b"\x00\x00" + b"old contents")

    def open_v0(data: bytes, secret: bytes, mode: Mode, context: bytes) -> bytes:
        return data[10:-32]

    assert unseal(old, KEY, mode=Mode.SUBKEY, context=b"", readers={0: open_v0, **READERS}) == b"old contents"


@pytest.mark.parametrize(
    ("kdf", "mode"),
    [
        (KdfParameters(Kdf.PBKDF2_SHA256, iterations=99_999), Mode.PASSPHRASE),
        (KdfParameters(Kdf.PBKDF2_SHA256, iterations=10_000_001), Mode.PASSPHRASE),
        (KdfParameters(Kdf.PBKDF2_SHA256, iterations=600_000, lanes=1), Mode.PASSPHRASE),
        (KdfParameters(Kdf.ARGON2ID, iterations=1, memory_kib=64 << 10, lanes=1), Mode.PASSPHRASE),
        (KdfParameters(Kdf.ARGON2ID, iterations=17, memory_kib=64 << 10, lanes=1), Mode.PASSPHRASE),
        (KdfParameters(Kdf.ARGON2ID, iterations=3, memory_kib=(19 << 10) - 1, lanes=1), Mode.PASSPHRASE),
        (KdfParameters(Kdf.ARGON2ID, iterations=3, memory_kib=(256 << 10) + 1, lanes=1), Mode.PASSPHRASE),
        (KdfParameters(Kdf.ARGON2ID, iterations=3, memory_kib=64 << 10, lanes=0), Mode.PASSPHRASE),
        (KdfParameters(Kdf.ARGON2ID, iterations=3, memory_kib=64 << 10, lanes=17), Mode.PASSPHRASE),
        (HKDF_SHA256, Mode.PASSPHRASE),
        (KdfParameters(Kdf.HKDF_SHA256, iterations=1), Mode.SUBKEY),
        (PBKDF2_SHA256, Mode.SUBKEY),
        (ARGON2ID, Mode.KEY_FILE),
    ],
)
def test_weak_excessive_and_unfitting_parameters_are_refused_both_ways(kdf: KdfParameters, mode: Mode) -> None:
    secret = b"secret" if mode is Mode.PASSPHRASE else KEY
    with pytest.raises(DamagedError):
        seal(b"", secret, mode=mode, kdf=kdf, context=b"", stored_at=0, randomness=RANDOMNESS)
    forged = with_header(seal_with_key(b""), 10, ">BBIII", mode, kdf.kdf, kdf.iterations, kdf.memory_kib, kdf.lanes)
    started = time.process_time()
    with pytest.raises(DamagedError):
        unseal(forged, secret, mode=mode, context=b"name")
    assert time.process_time() - started < 0.5  # the largest of them would run for seconds


def test_an_impossible_length_is_refused_before_anything_is_allocated() -> None:
    for length in (64 << 20 | 1, 2**63, 2**64 - 1):
        with pytest.raises(DamagedError):
            open_with_key(with_header(seal_with_key(b""), 76, ">Q", length))


def test_too_much_or_an_unfit_secret_is_refused_when_sealing() -> None:
    with pytest.raises(StorageError, match="too many"):
        seal_with_key(bytes((64 << 20) + 1))
    with pytest.raises(StorageError, match="32 bytes"):
        seal_with_key(b"", key=b"short")
    for passphrase in (b"", bytes(1025)):
        with pytest.raises(StorageError, match="passphrase"):
            seal(
                b"",
                passphrase,
                mode=Mode.PASSPHRASE,
                kdf=QUICK,
                context=b"",
                stored_at=0,
                randomness=RANDOMNESS,
            )


def test_the_header_tells_when_the_file_was_stored() -> None:
    assert read_header(seal_with_key(b"", stored_at=1_700_000_000.25)).stored_at == 1_700_000_000.25
    assert read_header(seal_with_key(b"", stored_at=-5)).stored_at == 0


# The first format, byte for byte: a change to it is a new version with a reader of its own.
GOLDEN_V1 = bytes.fromhex(
    "73646e6574001a0a0001010100000000000000000000000020272e353c434a51585f666d747b828990979ea5acb3bac1"
    "c8cfd6dde4ebf2f90c131a21282f363d444b52590000018bcfe56800000000000000000f000000000164836793574605"
    "ca8b34fa3ff512904c87f84a31266d2a2df7307c0ff3f9d9ed10862076c531cfd0f016318db5846396eb571c29359d7d"
    "d7602b6f062ce5"
)


def test_the_first_format_still_opens() -> None:
    assert open_with_key(GOLDEN_V1, context=b"devices/one") == b"golden contents"
