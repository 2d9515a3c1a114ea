"""SecureStorage: named sealed files."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.clock import SystemRandomness, run_in_thread
from sdnet_core.errors import StorageError
from sdnet_core.storage import DamagedError, NewerFormatError, SecureStorage, WrongKeyError
from sdnet_core.storage.envelope import OVERHEAD_BYTES, READERS, read_header

pytestmark = pytest.mark.anyio

T = TypeVar("T")
KEY = bytes(range(32))


class SetClock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class Inline:
    """Runs blocking functions where they are called, as simulations do."""

    async def __call__(self, function: Callable[..., T], /, *args: Any) -> T:
        return function(*args)


class HeldBack:
    """Runs functions in threads, but those of the first call only once the gate is open."""

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.calls = 0

    async def __call__(self, function: Callable[..., T], /, *args: Any) -> T:
        self.calls += 1
        if self.calls == 1:
            await self.gate.wait()
        return await run_in_thread(function, *args)


def storage_at(root: Path, key: bytes = KEY, **options: Any) -> SecureStorage:
    settings: dict[str, Any] = {"clock": SetClock(), "randomness": SystemRandomness(), "runner": run_in_thread}
    return SecureStorage(root, key, **(settings | options))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "network"


@pytest.fixture
def storage(root: Path) -> SecureStorage:
    return storage_at(root)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in below(folder) if path.is_file()}


async def test_what_was_stored_is_loaded(storage: SecureStorage, root: Path) -> None:
    assert await storage.load("devices/one") is None
    await storage.store("devices/one", b"first")
    await storage.store("devices/one", b"second")
    await storage.store("identity", b"")
    assert await storage.load("devices/one") == b"second"
    assert await storage_at(root).load("devices/one") == b"second"
    assert await storage.load("identity") == b""
    assert await storage.load("devices") is None
    assert await storage.load("identity/below") is None
    assert storage.recovered == []


async def test_nothing_is_touched_before_it_is_needed(storage: SecureStorage, root: Path) -> None:
    assert below(root.parent.parent) == []
    assert await storage.list() == []


async def test_files_are_for_the_owner_alone_and_small(storage: SecureStorage, root: Path) -> None:
    await storage.store("connections/local/remote", bytes(1000))
    await storage.store("connections/local/remote", bytes(1000))
    for path in (root, *below(root)):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert (root / "connections/local/remote").stat().st_size == 1000 + OVERHEAD_BYTES


async def test_no_plaintext_and_no_key_lies_on_the_disk(storage: SecureStorage, root: Path) -> None:
    plaintext = b"a pairing root that nobody may see"
    await storage.store("devices/one", plaintext)
    await storage.store("devices/one", plaintext)
    await storage.scoped("plugins/x").store("one", plaintext)
    on_disk = list(contents(root).values())
    assert len(on_disk) == 3
    for secret in (plaintext, KEY, KEY.hex().encode()):
        assert not any(secret in contents for contents in on_disk)
    headers = [read_header(contents) for contents in on_disk]
    assert len({header.nonce for header in headers}) == len({header.salt for header in headers}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "a/../b",
        "../a",
        "a//b",
        "a/",
        "/",
        "a\\b",
        "a\x00b",
        "a b",
        "\u00e9",
        ".hidden",
        "a/.tmp-1",
        "a.",
        "a.prev",
        "a.prev/b",
        "a.damaged",
        "a\n",
        "C:x",
        "a" * 129,
        "/".join("a" * 9),
        "/".join(["a" * 100] * 6),
    ],
)
async def test_names_that_could_escape_or_collide_are_refused(storage: SecureStorage, root: Path, name: str) -> None:
    for attempt in (storage.store(name, b""), storage.load(name), storage.delete(name)):
        with pytest.raises(StorageError, match="not a name"):
            await attempt
    with pytest.raises(StorageError, match="not a name"):
        storage.scoped(name)
    assert below(root.parent.parent) == []


@given(
    name=st.text(st.characters(max_codepoint=0x2FF), max_size=40)
    | st.lists(st.sampled_from(["a", "..", ".", "", "b.prev", "~"])).map("/".join)
)
def test_no_name_leads_out_of_the_root(name: str) -> None:
    root = Path("/nowhere/root")
    try:
        path = storage_at(root)._path(name)
    except StorageError:
        return
    assert Path(os.path.normpath(path)) == path
    assert root in path.parents


async def test_a_file_and_a_folder_of_one_name_are_refused_clearly(storage: SecureStorage) -> None:
    await storage.store("a/b", b"1")
    await storage.store("c", b"1")
    for name in ("a", "c/d"):
        with pytest.raises(StorageError):
            await storage.store(name, b"2")
    assert await storage.load("a/b") == await storage.load("c") == b"1"


async def test_a_link_in_place_of_a_folder_is_refused(storage: SecureStorage, root: Path, tmp_path: Path) -> None:
    await storage.store("identity", b"1")
    (tmp_path / "outside").mkdir()
    (root / "devices").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="directory"):
        await storage.store("devices/one", b"1")
    assert os.listdir(tmp_path / "outside") == []


async def test_a_file_swapped_for_another_is_refused(storage: SecureStorage, root: Path) -> None:
    await storage.store("devices/trusted", b"trusted")
    await storage.store("devices/revoked", b"revoked")
    (root / "devices/revoked").write_bytes((root / "devices/trusted").read_bytes())
    with pytest.raises(StorageError, match="another place"):
        await storage.load("devices/revoked")


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b""), Path.unlink])
async def test_a_damaged_file_is_restored_from_the_one_before_loudly(
    storage: SecureStorage, root: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    await storage.store("devices/one", b"first")
    await storage.store("devices/one", b"second")
    damage(root / "devices/one")
    assert await storage.list() == ["devices/one"]
    with caplog.at_level(logging.WARNING):
        assert await storage.load("devices/one") == b"first"
    assert len(storage.recovered) == 1
    assert str(root / "devices/one") in storage.recovered[0]
    assert storage.recovered[0] in caplog.text
    assert await storage.load("devices/one") == b"first"
    assert len(storage.recovered) == 1
    assert await storage_at(root).load("devices/one") == b"first"


async def test_what_was_damaged_is_kept_to_look_at_until_deleted(storage: SecureStorage, root: Path) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    (root / "one").write_bytes(b"rubbish")
    await storage.load("one")
    assert (root / "one.damaged").read_bytes() == b"rubbish"
    assert await storage.list() == ["one"]
    await storage.delete("one")
    assert os.listdir(root) == []


async def test_with_both_generations_damaged_it_fails_closed_and_says_how_to_recover(
    storage: SecureStorage, root: Path
) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    flip(root / "one")
    flip(root / "one.prev")
    before = contents(root)
    with pytest.raises(StorageError, match=r"damaged .*Restore one from a backup, or remove it and one\.prev"):
        await storage.load("one")
    assert contents(root) == before


async def test_a_damaged_file_does_not_push_out_the_good_one_before_it(storage: SecureStorage, root: Path) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    flip(root / "one")
    await storage.store("one", b"third")
    flip(root / "one")
    assert await storage.load("one") == b"first"


async def test_the_wrong_key_opens_and_changes_nothing(storage: SecureStorage, root: Path) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    with pytest.raises(StorageError, match="another secret"):
        await storage_at(root, key=bytes(32)).load("one")
    assert await storage.load("one") == b"second"
    assert storage.recovered == []


async def test_a_passing_failure_to_read_is_no_reason_to_go_back(
    storage: SecureStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    real = os.open

    def fail_for_the_current(path: Path, *rest: int) -> int:
        if Path(path) == root / "one":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail_for_the_current)
        with pytest.raises(StorageError, match="Too many open files"):
            await storage.load("one")
    assert await storage.load("one") == b"second"


async def test_a_disk_that_cannot_be_written_does_not_hinder_recovery(
    storage: SecureStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    flip(root / "one")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        assert await storage.load("one") == b"first"
        with pytest.raises(StorageError, match=r"disk is full: .*nothing was changed"):
            await storage.store("one", b"third")
    assert await storage.load("one") == b"first"


async def test_both_generations_can_be_replaced_so_that_nothing_old_comes_back(
    storage: SecureStorage, root: Path
) -> None:
    await storage.store("devices/one", b"trusted")
    await storage.store("devices/one", b"trusted still")
    await storage.store("devices/one", b"revoked", both_generations=True)
    flip(root / "devices/one")
    assert await storage.load("devices/one") == b"revoked"


async def test_deleted_is_gone_with_all_generations(storage: SecureStorage, root: Path) -> None:
    for data in (b"first", b"second"):
        await storage.store("devices/one", data)
    await storage.delete("devices/one")
    await storage.delete("devices/one")
    assert await storage.load("devices/one") is None
    assert await storage.list() == []
    assert os.listdir(root / "devices") == []


async def test_a_delete_cut_short_leaves_the_file_and_not_an_older_one(
    storage: SecureStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data in (b"first", b"second"):
        await storage.store("one", data)
    real = os.unlink

    def fail_for_the_current(path: Path) -> None:
        if Path(path) == root / "one":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail_for_the_current)
        with pytest.raises(StorageError):
            await storage.delete("one")
    assert os.listdir(root) == ["one"]
    assert await storage.load("one") == b"second"


async def test_listing_names_a_folder_and_what_is_below(storage: SecureStorage, root: Path) -> None:
    names = ["connections/a/b", "connections/a/c", "devices/one", "devices/two", "identity"]
    for name in reversed(names):
        await storage.store(name, b"1")
        await storage.store(name, b"2")
    (root / ".tmp-00").write_bytes(b"")
    assert await storage.list() == names
    assert await storage.list("devices") == await storage.list("devices/") == ["devices/one", "devices/two"]
    assert await storage.list("connections") == ["connections/a/b", "connections/a/c"]
    assert await storage.list("dev") == await storage.list("nothing") == await storage.list("identity") == []
    with pytest.raises(StorageError):
        await storage.list("../")


async def test_pruning_removes_what_was_stored_too_long_ago(root: Path) -> None:
    clock = SetClock()
    storage = storage_at(root, clock=clock)
    for name in ("history/old", "history/renewed", "devices/old"):
        await storage.store(name, b"1")
    clock.time += 1000
    await storage.store("history/renewed", b"2")
    await storage.store("history/new", b"1")
    await storage.store("history/damaged", b"1")
    flip(root / "history/damaged")
    assert await storage.prune("history", 1001) == 0
    clock.time += 10
    assert await storage.prune("history", 1001) == 1
    assert await storage.list() == ["devices/old", "history/damaged", "history/new", "history/renewed"]


async def test_scoped_views_have_keys_and_folders_of_their_own(storage: SecureStorage, root: Path) -> None:
    pairing, messaging = storage.scoped("plugins/pairing"), storage.scoped("plugins/messaging")
    await pairing.store("sessions/one", b"pairing")
    await messaging.store("sessions/one", b"messaging")
    await storage.store("identity", b"core")
    assert await pairing.load("sessions/one") == b"pairing"
    assert await pairing.list() == ["sessions/one"]
    assert (root / "plugins/pairing/sessions/one").exists()
    assert pairing.root == root / "plugins/pairing"
    assert await storage_at(root).scoped("plugins/pairing").load("sessions/one") == b"pairing"
    (root / "plugins/messaging/sessions/one").write_bytes((root / "plugins/pairing/sessions/one").read_bytes())
    with pytest.raises(StorageError):
        await messaging.load("sessions/one")
    with pytest.raises(StorageError):
        await pairing.load("../messaging/sessions/one")


async def test_a_storage_keeps_out_of_its_scoped_views(storage: SecureStorage) -> None:
    view = storage.scoped("plugins/pairing")
    await view.store("one", b"1")
    await storage.store("plugins/pairing-2", b"1")
    for attempt in (storage.store("plugins/pairing/one", b""), storage.load("plugins/pairing/one")):
        with pytest.raises(StorageError, match="scoped"):
            await attempt
    assert await storage.list() == ["plugins/pairing-2"]
    inner = view.scoped("inner")
    await inner.store("one", b"2")
    assert await view.list() == ["one"]
    assert await inner.list() == ["one"]
    assert await storage.prune("", -1) == 1
    assert await inner.load("one") == b"2"


async def test_recoveries_of_a_view_are_seen_by_the_storage(storage: SecureStorage, root: Path) -> None:
    view = storage.scoped("plugins/pairing")
    await view.store("one", b"1")
    await view.store("one", b"2")
    flip(root / "plugins/pairing/one")
    await view.load("one")
    assert len(storage.recovered) == 1


async def test_data_kept_elsewhere(storage: SecureStorage) -> None:
    sealed = storage.encrypt_data(b"row", "outbox/1")
    assert b"row" not in sealed
    assert storage.decrypt_data(sealed, "outbox/1") == b"row"
    for opener, context in ((storage, "outbox/2"), (storage.scoped("plugins/x"), "outbox/1")):
        with pytest.raises(WrongKeyError):
            opener.decrypt_data(sealed, context)
    with pytest.raises(DamagedError):
        storage.decrypt_data(sealed[:-1], "outbox/1")


async def test_left_over_temporary_files_are_cleaned_at_the_start(storage: SecureStorage, root: Path) -> None:
    await storage.store("devices/one", b"1")
    for folder in (root, root / "devices"):
        (folder / ".tmp-0123").write_bytes(b"half")
    assert await storage_at(root).load("devices/one") == b"1"
    assert sorted(contents(root)) == ["devices/one"]


async def test_the_last_call_has_the_last_word_whatever_thread_runs_first(root: Path) -> None:
    runner = HeldBack()
    storage = storage_at(root, runner=runner)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(storage.store, "one", b"called first")
        while not runner.calls:
            await anyio.lowlevel.checkpoint()
        await storage.store("one", b"called last")
        await storage.store("two", b"other")
        runner.gate.set()
    assert await storage.load("one") == b"called last"
    assert not storage._shared.queues


async def test_writers_of_many_tasks_do_not_disturb_each_other(storage: SecureStorage, root: Path) -> None:
    async def write(name: str) -> None:
        for number in range(5):
            await storage.store(name, f"{name} {number}".encode())

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(write, f"devices/{number}")
    for number in range(8):
        assert await storage.load(f"devices/{number}") == f"devices/{number} 4".encode()
    assert storage.recovered == []


async def test_the_disk_is_never_touched_on_the_event_loop_thread(
    storage: SecureStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched_by: set[int] = set()
    for name in ("open", "write", "fsync", "rename", "unlink", "scandir", "mkdir"):
        real = getattr(os, name)

        def noting(*args: Any, real: Any = real, **options: Any) -> Any:
            if not (args and isinstance(args[0], int)):
                touched_by.add(threading.get_ident())
            return real(*args, **options)

        monkeypatch.setattr(os, name, noting)
    await storage.store("one", b"1")
    await storage.load("one")
    await storage.list()
    await storage.prune("", -1)
    await storage.delete("one")
    monkeypatch.undo()
    assert touched_by
    assert threading.get_ident() not in touched_by


async def test_it_runs_inline_as_simulations_need(root: Path) -> None:
    storage = storage_at(root, runner=Inline())
    await storage.store("one", b"1")
    assert await storage.load("one") == b"1"


async def test_an_older_format_is_read_and_rewritten(root: Path) -> None:
    def open_v0(data: bytes, *_: object) -> bytes:
        return data[10:-32]

    storage = storage_at(root, readers={0: open_v0, **READERS})
    body = b"sdnet\x00\x1a\n\x00\x00" + b"old contents"
    await storage.list()
    (root / "one").write_bytes(body + hashlib.sha256(body).digest())
    assert await storage.load("one") == b"old contents"
    assert await storage_at(root).load("one") == b"old contents"  # which knows the newest format only


async def test_a_newer_format_is_refused_and_not_overwritten(storage: SecureStorage, root: Path) -> None:
    await storage.store("one", b"1")
    await storage.store("one", b"2")
    body = bytearray((root / "one").read_bytes()[:-32])
    body[9] = 2
    (root / "one").write_bytes(bytes(body) + hashlib.sha256(body).digest())
    for attempt in (storage.load("one"), storage.store("one", b"3")):
        with pytest.raises(NewerFormatError, match="Update sdnet"):
            await attempt
    assert (root / "one").read_bytes()[9] == 2


def test_a_key_of_the_wrong_length_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="32"):
        storage_at(root, key=b"short")
