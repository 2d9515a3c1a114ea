"""The vault: two modes, no silent loss, no silent start from nothing."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.errors import ConflictError, StorageError
from sdnet_core.storage.atomic import write_atomic
from sdnet_core.storage.envelope import HKDF_SHA256, Kdf, KdfParameters, Mode, NewerFormatError, read_header, seal
from sdnet_core.storage.unlock import (
    KeyFile,
    Passphrase,
    PassphraseRequiredError,
    Unlock,
    VaultMode,
    WrongPassphraseError,
)
from sdnet_core.storage.vault import Vault

CLOCK, RANDOMNESS = SystemClock(), SystemRandomness()
QUICK = KdfParameters(Kdf.PBKDF2_SHA256, iterations=100_000)
GOOD, OTHER = Passphrase("correct horse", QUICK), Passphrase("battery staple", QUICK)

Damage = Callable[[Path], object]


def stored_mode(directory: Path) -> VaultMode:
    """What protects the vault there, as its header says."""
    found = Vault.stored_protection(directory)
    assert found is not None
    return found.mode


def create(directory: Path, unlock: Unlock) -> Vault:
    return Vault.create(directory, unlock, CLOCK, RANDOMNESS)


def reopen(directory: Path, unlock: Unlock) -> Vault:
    return Vault.open(directory, unlock, CLOCK, RANDOMNESS)


def open_or_create(directory: Path, unlock: Unlock) -> Vault:
    return Vault.open_or_create(directory, unlock, CLOCK, RANDOMNESS)


def put_sealed_file(directory: Path, vault: Vault) -> Path:
    path = directory / "network" / "identity"
    path.parent.mkdir(parents=True)
    sealed = seal(
        b"identity",
        vault.subkey("network"),
        mode=Mode.SUBKEY,
        kdf=HKDF_SHA256,
        context=b"identity",
        stored_at=0,
        randomness=RANDOMNESS,
    )
    write_atomic(path, sealed, randomness=RANDOMNESS)
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("unlock", [KeyFile(), GOOD], ids=["key-file", "passphrase"])
def test_a_vault_gives_the_same_subkeys_every_time(tmp_path: Path, unlock: Unlock) -> None:
    first = open_or_create(tmp_path / "data", unlock)
    second = open_or_create(tmp_path / "data", unlock)
    labels = ["identity", "devices", "outbox", "plugins/pairing"]
    keys = [first.subkey(label) for label in labels]
    assert keys == [second.subkey(label) for label in labels]
    assert len(set(keys)) == len(labels)
    assert {len(key) for key in keys} == {32}
    assert first.created_at == second.created_at
    assert second.recovered == []


def test_two_vaults_have_nothing_in_common(tmp_path: Path) -> None:
    assert create(tmp_path / "a", GOOD).subkey("x") != create(tmp_path / "b", GOOD).subkey("x")


@pytest.mark.parametrize("label", ["", "x" * 256])
def test_an_unfit_label_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(ValueError, match="label"):
        create(tmp_path, KeyFile()).subkey(label)


def test_the_mode_is_known_before_unlocking_and_says_how_much_it_protects(tmp_path: Path) -> None:
    assert Vault.stored_protection(tmp_path / "none") is None
    assert create(tmp_path / "a", KeyFile()).mode is stored_mode(tmp_path / "a") is VaultMode.KEY_FILE
    assert create(tmp_path / "b", GOOD).mode is stored_mode(tmp_path / "b") is VaultMode.PASSPHRASE
    assert VaultMode.KEY_FILE.protection == "unprotected"
    flip(tmp_path / "b" / "vault")
    assert stored_mode(tmp_path / "b") is VaultMode.PASSPHRASE


def test_the_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    create(tmp_path / "data", KeyFile())
    assert sorted(os.listdir(tmp_path / "data")) == ["vault", "vault.key", "vault.prev"]
    for path in (tmp_path / "data").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_a_key_file_that_others_could_read_is_tightened_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create(tmp_path, KeyFile())
    (tmp_path / "vault.key").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        reopen(tmp_path, KeyFile())
    assert stat.S_IMODE((tmp_path / "vault.key").stat().st_mode) == 0o600
    assert "readable by other users" in caplog.text


def test_the_default_passphrase_costs_what_is_promised(tmp_path: Path) -> None:
    create(tmp_path, Passphrase("secret"))
    header = read_header((tmp_path / "vault").read_bytes())
    assert header.kdf == KdfParameters(Kdf.PBKDF2_SHA256, iterations=600_000)
    assert not (tmp_path / "vault.key").exists()


def test_a_wrong_passphrase_is_told_apart_from_damage(tmp_path: Path) -> None:
    create(tmp_path, GOOD)
    before = snapshot(tmp_path)
    with pytest.raises(WrongPassphraseError, match="passphrase is wrong"):
        reopen(tmp_path, OTHER)
    flip(tmp_path / "vault")
    with pytest.raises(WrongPassphraseError):  # the copy answers; a wrong passphrase restores nothing
        reopen(tmp_path, OTHER)
    assert (tmp_path / "vault").read_bytes() != before["vault"]


def test_the_wrong_kind_of_unlock_is_told_apart(tmp_path: Path) -> None:
    create(tmp_path / "a", GOOD)
    with pytest.raises(PassphraseRequiredError, match="passphrase"):
        reopen(tmp_path / "a", KeyFile())
    create(tmp_path / "b", KeyFile())
    with pytest.raises(StorageError, match="key-file mode"):
        reopen(tmp_path / "b", GOOD)


def test_a_passphrase_is_the_same_however_it_is_typed(tmp_path: Path) -> None:
    key = create(tmp_path, Passphrase("caf\u00e9", QUICK)).subkey("x")
    assert reopen(tmp_path, Passphrase("cafe\u0301")).subkey("x") == key
    assert reopen(tmp_path, Passphrase("caf\u00e9".encode())).subkey("x") == key


@pytest.mark.parametrize("secret", ["", b"", "x" * 1025, "\ud800"])
def test_an_unfit_passphrase_is_refused_before_anything_is_written(tmp_path: Path, secret: str | bytes) -> None:
    with pytest.raises(StorageError, match="passphrase"):
        create(tmp_path, Passphrase(secret))
    assert os.listdir(tmp_path) == []


def test_secrets_do_not_show_in_reprs(tmp_path: Path) -> None:
    vault = create(tmp_path, GOOD)
    assert "correct" not in repr(GOOD)
    assert vault.subkey("x").hex() not in repr(vault)
    assert repr(vault) == f"<Vault {tmp_path} passphrase>"


@pytest.mark.parametrize("unlock", [KeyFile(), GOOD], ids=["key-file", "passphrase"])
@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
def test_a_damaged_vault_is_restored_from_its_copy_loudly(
    tmp_path: Path, unlock: Unlock, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    key = create(tmp_path, unlock).subkey("x")
    before = snapshot(tmp_path)
    damage(tmp_path / "vault")
    with caplog.at_level(logging.WARNING):
        vault = reopen(tmp_path, unlock)
    assert vault.subkey("x") == key
    assert snapshot(tmp_path) == before
    assert len(vault.recovered) == 1
    assert "restored" in vault.recovered[0]
    assert vault.recovered[0] in caplog.text
    assert reopen(tmp_path, unlock).recovered == []


def test_a_damaged_copy_is_replaced_loudly(tmp_path: Path) -> None:
    create(tmp_path, GOOD)
    before = snapshot(tmp_path)
    flip(tmp_path / "vault.prev")
    assert len(reopen(tmp_path, GOOD).recovered) == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("unlock", [KeyFile(), GOOD], ids=["key-file", "passphrase"])
@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
def test_with_both_generations_gone_it_fails_closed_and_says_how_to_recover(
    tmp_path: Path, unlock: Unlock, damage: Damage
) -> None:
    vault = create(tmp_path, unlock)
    put_sealed_file(tmp_path, vault)
    backup = (tmp_path / "vault").read_bytes()
    damage(tmp_path / "vault")
    damage(tmp_path / "vault.prev")
    before = snapshot(tmp_path)
    for attempt in (reopen, open_or_create):
        with pytest.raises(StorageError, match=r"vault\.prev.*backup.*paired again.*Nothing was changed"):
            attempt(tmp_path, unlock)
    with pytest.raises(StorageError, match="unreadable"):
        create(tmp_path, unlock)
    assert snapshot(tmp_path) == before
    (tmp_path / "vault").write_bytes(backup)  # and the advice works
    assert reopen(tmp_path, unlock).subkey("x") == vault.subkey("x")


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
def test_a_lost_or_damaged_key_file_fails_closed(tmp_path: Path, damage: Damage) -> None:
    create(tmp_path, KeyFile())
    damage(tmp_path / "vault.key")
    before = snapshot(tmp_path)
    for attempt in (reopen, open_or_create):
        with pytest.raises(StorageError, match=r"(?s)key file .*vault\.key.*backup"):
            attempt(tmp_path, KeyFile())
    assert snapshot(tmp_path) == before


def test_a_key_file_without_any_sealed_data_is_only_a_start_cut_short(tmp_path: Path) -> None:
    (tmp_path / "vault.key").write_bytes(bytes(range(32)))
    (tmp_path / ".tmp-0011223344556677").write_bytes(b"sdnet\x00\x1a\n and no more")
    vault = open_or_create(tmp_path, KeyFile())
    assert sorted(os.listdir(tmp_path)) == ["vault", "vault.key", "vault.prev"]
    assert reopen(tmp_path, KeyFile()).subkey("x") == vault.subkey("x")


def test_without_data_there_is_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no data"):
        reopen(tmp_path / "none", KeyFile())
    assert not (tmp_path / "none").exists()


def test_a_vault_is_never_created_over_another(tmp_path: Path) -> None:
    create(tmp_path, KeyFile())
    before = snapshot(tmp_path)
    with pytest.raises(StorageError, match="unreadable"):
        create(tmp_path, GOOD)
    assert snapshot(tmp_path) == before


def test_a_newer_vault_is_refused_and_its_copy_not_used(tmp_path: Path) -> None:
    create(tmp_path, KeyFile())
    body = bytearray((tmp_path / "vault").read_bytes()[:-32])
    body[9] = 2
    (tmp_path / "vault").write_bytes(bytes(body) + hashlib.sha256(body).digest())
    before = snapshot(tmp_path)
    with pytest.raises(NewerFormatError, match="Update sdnet"):
        open_or_create(tmp_path, KeyFile())
    assert snapshot(tmp_path) == before


def test_a_passing_failure_to_read_is_no_reason_to_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path, KeyFile())
    real = os.open

    def fail_for_the_vault(path: Path, *rest: int) -> int:
        if Path(path).name == "vault":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *rest)

    monkeypatch.setattr(os, "open", fail_for_the_vault)
    with pytest.raises(StorageError, match="Too many open files"):
        reopen(tmp_path, KeyFile())


@pytest.mark.parametrize(
    ("old", "new"),
    [(KeyFile(), GOOD), (GOOD, KeyFile()), (GOOD, OTHER)],
    ids=["set", "remove", "change"],
)
def test_changing_the_secret_keeps_the_keys_and_shuts_the_old_secret_out(
    tmp_path: Path, old: Unlock, new: Unlock
) -> None:
    vault = create(tmp_path, old)
    key = vault.subkey("x")
    left_over = snapshot(tmp_path).get("vault.key")
    vault.change_secret(new)
    assert vault.mode is (VaultMode.KEY_FILE if new == KeyFile() else VaultMode.PASSPHRASE)
    assert vault.subkey("x") == reopen(tmp_path, new).subkey("x") == key
    assert vault.created_at == reopen(tmp_path, new).created_at
    assert (tmp_path / "vault.key").exists() is (new == KeyFile())
    (tmp_path / "vault").unlink()  # neither generation opens with the old secret
    if left_over is not None:
        (tmp_path / "vault.key").write_bytes(left_over)
    with pytest.raises(StorageError):
        reopen(tmp_path, old)
    assert reopen(tmp_path, new).subkey("x") == key


def test_the_present_secret_can_be_asked_for(tmp_path: Path) -> None:
    vault = create(tmp_path, GOOD)
    before = snapshot(tmp_path)
    with pytest.raises(WrongPassphraseError):
        vault.change_secret(KeyFile(), current=OTHER)
    assert snapshot(tmp_path) == before
    vault.change_secret(OTHER, current=GOOD)
    assert reopen(tmp_path, OTHER).subkey("x") == vault.subkey("x")


def test_a_key_file_is_not_asked_for_twice(tmp_path: Path) -> None:
    with pytest.raises(ConflictError):
        create(tmp_path, KeyFile()).change_secret(KeyFile())


STEPS = ["open", "write", "fsync", "rename", "unlink"]


@pytest.mark.parametrize(
    ("old", "new"),
    [(KeyFile(), GOOD), (GOOD, KeyFile()), (GOOD, OTHER)],
    ids=["set", "remove", "change"],
)
def test_a_disk_that_fills_while_the_secret_changes_locks_nobody_out(
    tmp_path: Path, old: Unlock, new: Unlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every system call of the change fails in turn, for good."""
    for step in range(200):
        directory = tmp_path / str(step)
        vault = create(directory, old)
        key = vault.subkey("x")
        left = step

        def fail_later(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, fail_later(getattr(os, name)))
            try:
                vault.change_secret(new)
                done = True
            except StorageError:
                done = False
        mode = stored_mode(directory)
        assert mode is not None
        unlock = next(each for each in (new, old) if opens(directory, each))
        assert reopen(directory, unlock).subkey("x") == key
        assert sorted(os.listdir(directory)) == sorted(
            ["vault", "vault.prev", *(["vault.key"] if unlock == KeyFile() else [])]
        )
        if done and left >= 0:
            assert unlock == new
            return
    pytest.fail("the change never came to its end")


def opens(directory: Path, unlock: Unlock) -> bool:
    try:
        reopen(directory, unlock)
    except StorageError:
        return False
    return True


@pytest.mark.parametrize("unlock", [KeyFile(), GOOD], ids=["key-file", "passphrase"])
def test_no_key_and_no_passphrase_lies_on_the_disk(tmp_path: Path, unlock: Unlock) -> None:
    vault = create(tmp_path, unlock)
    secrets = [vault._data_key, vault.subkey("identity"), b"correct horse"]
    vault.change_secret(OTHER if isinstance(unlock, KeyFile) else KeyFile())
    vault.change_secret(unlock)
    on_disk = snapshot(tmp_path)
    key_file = on_disk.pop("vault.key", None)
    assert (key_file is not None) is isinstance(unlock, KeyFile)
    for secret in (*secrets, *([] if key_file is None else [key_file])):
        for shape in (secret, secret.hex().encode()):
            assert not any(shape in contents for contents in on_disk.values())
