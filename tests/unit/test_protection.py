"""A passphrase is set, changed and removed, while the node runs and while it does not."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkingCore
from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.config import Config, load_config
from sdnet_core.core_protection import KDFS, change_protection_offline
from sdnet_core.errors import AlreadyRunningError, ConflictError
from sdnet_core.storage import (
    ARGON2ID,
    Kdf,
    KdfParameters,
    KeyFile,
    Passphrase,
    PassphraseRequiredError,
    Unlock,
    Vault,
    VaultMode,
    WrongPassphraseError,
)
from sdnet_core.storage.atomic import previous_path
from sdnet_core.testing import MemoryDiscovery, MemoryNetwork, memory_node

CLOCK, RANDOMNESS = SystemClock(), SystemRandomness()
QUICK = KdfParameters(Kdf.PBKDF2_SHA256, iterations=100_000)
FIRST, SECOND = Passphrase("correct horse", QUICK), Passphrase("battery staple")


def node(home: Path, unlock: Unlock | None = None) -> NetworkingCore:
    core = memory_node(home, "a", network=MemoryNetwork(), discovery=MemoryDiscovery())
    core._unlock = unlock or KeyFile()
    return core


def config_of(home: Path) -> Config:
    return node(home).config


def audited(config: Config) -> list[str]:
    """The modes of the changes that the audit log holds."""
    lines = (config.paths.data / "audit.log").read_text().splitlines()
    return [line["mode"] for line in map(json.loads, lines) if line["kind"] == "vault-changed"]


def opens_nothing(directory: Path, unlock: Unlock) -> bool:
    """Whether a secret opens neither generation of the vault."""
    vault = directory / "vault"
    kept, opened = vault.read_bytes(), False
    for generation in (vault, previous_path(vault)):
        vault.write_bytes(generation.read_bytes())
        try:
            Vault.check(directory, unlock)
            opened = True
        except (WrongPassphraseError, PassphraseRequiredError):
            pass
    vault.write_bytes(kept)
    return not opened


@pytest.mark.anyio
async def test_set_change_and_remove_while_it_runs(tmp_path: Path) -> None:
    async with node(tmp_path) as core:
        identity, data = core.identity.seed, core.config.paths.data
        assert core.status()["storage"]["protection"] == "unprotected"
        found = await core.change_protection(FIRST)
        assert (found.mode, found.kdf) == (VaultMode.PASSPHRASE, QUICK)
        assert core.status()["storage"]["kdf"] == {"name": "pbkdf2-sha256", "iterations": 100_000}
        assert not (data / "vault.key").exists()
        with pytest.raises(ConflictError, match="already"):
            await core.change_protection(SECOND)
        with pytest.raises(WrongPassphraseError):
            await core.change_protection(SECOND, current=SECOND)
        # Without another wish the key is made as before.
        assert (await core.change_protection(SECOND, current=FIRST)).kdf == QUICK
        assert opens_nothing(data, FIRST)
        assert opens_nothing(data, KeyFile())
    async with node(tmp_path, SECOND) as core:
        assert core.identity.seed == identity
        with pytest.raises(ConflictError):
            await core.change_protection(KeyFile())
        assert (await core.change_protection(KeyFile(), current=SECOND)).kdf is None
        with pytest.raises(ConflictError, match="no passphrase yet"):
            await core.change_protection(KeyFile(), current=SECOND)
    async with node(tmp_path) as core:
        assert core.identity.seed == identity
        assert audited(core.config) == ["passphrase", "passphrase", "key-file"]
        assert (await core.audit.verify()).problems == ()


@pytest.mark.anyio
async def test_two_changes_at_once_do_not_mix(tmp_path: Path) -> None:
    outcomes: list[str] = []

    async def change(core: NetworkingCore, new: Passphrase) -> None:
        try:
            await core.change_protection(new)
            outcomes.append("changed")
        except ConflictError:
            outcomes.append("refused")

    async with node(tmp_path) as core, anyio.create_task_group() as tasks:
        tasks.start_soon(change, core, FIRST)
        tasks.start_soon(change, core, Passphrase("another", QUICK))
    assert sorted(outcomes) == ["changed", "refused"]


def test_set_change_and_remove_while_it_does_not_run(tmp_path: Path) -> None:
    config = config_of(tmp_path)

    async def identity(unlock: Unlock) -> bytes:
        async with node(tmp_path, unlock) as core:
            return core.identity.seed

    before = anyio.run(identity, KeyFile())

    def change(new: Unlock, current: Passphrase | None) -> VaultMode:
        return change_protection_offline(config, new, current=current, clock=CLOCK, randomness=RANDOMNESS).mode

    assert change(FIRST, None) is VaultMode.PASSPHRASE
    with pytest.raises(ConflictError):
        change(SECOND, None)
    with pytest.raises(WrongPassphraseError):
        change(SECOND, Passphrase("wrong"))
    assert change(SECOND, FIRST) is VaultMode.PASSPHRASE
    assert opens_nothing(config.paths.data, FIRST)
    assert anyio.run(identity, SECOND) == before
    assert change(KeyFile(), SECOND) is VaultMode.KEY_FILE
    assert anyio.run(identity, KeyFile()) == before
    assert audited(config) == ["passphrase", "passphrase", "key-file"]


def test_a_passphrase_before_the_first_start(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(ConflictError):
        change_protection_offline(config, KeyFile(), current=FIRST, clock=CLOCK, randomness=RANDOMNESS)
    new = Passphrase("correct horse", KDFS["argon2id"])
    found = change_protection_offline(config, new, current=None, clock=CLOCK, randomness=RANDOMNESS)
    assert found.kdf == ARGON2ID

    async def start() -> None:
        async with node(tmp_path, new) as core:
            kdf = core.status()["storage"]["kdf"]
            assert kdf == {"name": "argon2id", "iterations": 3, "memory_kib": 65536, "lanes": 4}

    anyio.run(start)


@pytest.mark.anyio
async def test_not_behind_the_back_of_a_running_node(tmp_path: Path) -> None:
    async with node(tmp_path) as core:
        with pytest.raises(AlreadyRunningError):
            change_protection_offline(core.config, FIRST, current=None, clock=CLOCK, randomness=RANDOMNESS)
        assert core.protection.mode is VaultMode.KEY_FILE


@pytest.mark.anyio
async def test_the_default_costs_what_is_promised(tmp_path: Path) -> None:
    async with node(tmp_path) as core:
        found = await core.change_protection(SECOND)
        assert found.kdf is not None
        assert (found.kdf.kdf, found.kdf.iterations) == (Kdf.PBKDF2_SHA256, 600_000)


def test_load_config_takes_no_passphrase() -> None:
    """There is no setting, and so no variable, that a passphrase could be put into."""
    config = load_config(environ={"SDNET_PASSPHRASE": "secret", "SDNET_NODE_PASSPHRASE": "secret"})
    assert "secret" not in repr(config)
