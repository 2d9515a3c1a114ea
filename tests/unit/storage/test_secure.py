"""SecureStorage: named sealed files."""

from __future__ import annotations

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

from sdnet_core.clock import SystemClock, SystemRandomness, run_in_thread
from sdnet_core.errors import StorageError
from sdnet_core.storage import DamagedError, SecureStorage, WrongKeyError
from sdnet_core.storage.envelope import OVERHEAD_BYTES, read_header

pytestmark = pytest.mark.anyio

T = TypeVar("T")
StorageAt = Callable[..., SecureStorage]
KEY = bytes(range(32))


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


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in below(folder) if path.is_file()}


async def test_what_was_stored_is_loaded(storage: SecureStorage, root: Path, storage_at: StorageAt) -> None:
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
        path = SecureStorage(root, KEY, clock=SystemClock(), randomness=SystemRandomness(), runner=run_in_thread)._path(
            name
        )
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


async def test_pruning_removes_what_was_stored_too_long_ago(storage: SecureStorage, root: Path, clock: Any) -> None:
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


async def test_scoped_views_have_keys_and_folders_of_their_own(
    storage: SecureStorage, root: Path, storage_at: StorageAt
) -> None:
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


async def test_data_kept_elsewhere(storage: SecureStorage) -> None:
    sealed = storage.encrypt_data(b"row", "outbox/1")
    assert b"row" not in sealed
    assert storage.decrypt_data(sealed, "outbox/1") == b"row"
    for opener, context in ((storage, "outbox/2"), (storage.scoped("plugins/x"), "outbox/1")):
        with pytest.raises(WrongKeyError):
            opener.decrypt_data(sealed, context)
    with pytest.raises(DamagedError):
        storage.decrypt_data(sealed[:-1], "outbox/1")


async def test_the_last_call_has_the_last_word_whatever_thread_runs_first(root: Path, storage_at: StorageAt) -> None:
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


async def test_it_runs_inline_as_simulations_need(root: Path, storage_at: StorageAt) -> None:
    storage = storage_at(root, runner=Inline())
    await storage.store("one", b"1")
    assert await storage.load("one") == b"1"


def test_a_key_of_the_wrong_length_is_refused(root: Path, storage_at: StorageAt) -> None:
    with pytest.raises(ValueError, match="32"):
        storage_at(root, key=b"short")
