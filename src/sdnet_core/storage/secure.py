"""Named sealed files: each with its own key and nonce, bound to its name, in two generations."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from sdnet_core.clock import Clock, Randomness, Runner
from sdnet_core.errors import SerializationError, StorageError
from sdnet_core.storage.atomic import (
    PREVIOUS_SUFFIX,
    DamagedError,
    clean_temporary,
    ensure_private_directory,
    in_part,
    link_tree,
    previous_path,
    read_bounded,
    remove_durably,
    rename_durably,
    write_atomic,
)
from sdnet_core.storage.envelope import (
    FORMAT_VERSION,
    HKDF_SHA256,
    KEY_BYTES,
    MAX_PLAINTEXT_BYTES,
    OVERHEAD_BYTES,
    READERS,
    Mode,
    NewerFormatError,
    Reader,
    WrongKeyError,
    header_version,
    read_header,
    seal,
    unseal,
)

__all__ = ["MAX_NAME_CHARACTERS", "SecureStorage"]

logger = logging.getLogger(__name__)

MAX_NAME_CHARACTERS = 512
MAX_NAME_DEPTH = 8

_DAMAGED_SUFFIX = ".damaged"
_MAX_FILE_BYTES = MAX_PLAINTEXT_BYTES + OVERHEAD_BYTES
_COMPONENT = re.compile(r"[A-Za-z0-9_@+=-][A-Za-z0-9_@+=.-]{0,127}")
_RESERVED_ENDINGS = (".", PREVIOUS_SUFFIX, _DAMAGED_SUFFIX)
_SCOPE_INFO = b"sdnet/scope/v1\x00"
_FILE_CONTEXT = b"sdnet/file/v1\x00"
_DATA_CONTEXT = b"sdnet/data/v1\x00"

T = TypeVar("T")
_Names = list[str]
_Paths = list[Path]


@dataclass(slots=True)
class _Queue:
    """What is under way for one file."""

    waiting: int = 0
    last_done: int = -1


@dataclass(slots=True)
class _Shared:
    """What a storage and its scoped views have in common."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    """Taken by worker threads only, for the length of one operation on the disk."""
    ready: bool = False
    scopes: set[str] = field(default_factory=set)
    tickets: Iterator[int] = field(default_factory=itertools.count)
    queues: dict[Path, _Queue] = field(default_factory=dict)
    recovered: list[str] = field(default_factory=list)


class SecureStorage:
    """Keeps small files sealed under one key.

    Every method that touches the disk runs in the injected runner. Writes to one name take effect in the order in
    which they were called, and a write that returned is durable. What a file's current generation cannot give is
    taken from the previous one, and said in `recovered` and in the log.
    """

    def __init__(
        self,
        root: Path,
        key: bytes,
        *,
        clock: Clock,
        randomness: Randomness,
        runner: Runner,
        readers: Mapping[int, Reader] = READERS,
    ) -> None:
        """Nothing is read or written yet.

        :param root: the directory for the files; created when first needed.
        :param key: 32 bytes, from `Vault.subkey`.
        :param readers: the format versions that can be read; a file of an older one is rewritten when it is loaded.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key must have {KEY_BYTES} bytes")
        self._root = root
        self._key = key
        self._clock = clock
        self._randomness = randomness
        self._runner = runner
        self._readers = readers
        self._prefix = ""
        self._shared = _Shared()

    def __repr__(self) -> str:
        return f"<SecureStorage {self._root / self._prefix}>"

    @property
    def root(self) -> Path:
        """The directory under which this storage, or this view of it, keeps its files."""
        return self._root / self._prefix

    @property
    def recovered(self) -> list[str]:
        """What was found damaged and restored since the start, one sentence each, over all views."""
        return list(self._shared.recovered)

    def scoped(self, prefix: str) -> SecureStorage:
        """Give a view of one folder that has its own key, such as ``plugins/pairing``.

        Names are relative to the folder. This storage itself no longer reaches into it.

        :raises StorageError: the prefix is not a valid name.
        """
        _check_name(prefix)
        view = SecureStorage(
            self._root,
            HKDFExpand(hashes.SHA256(), KEY_BYTES, _SCOPE_INFO + prefix.encode()).derive(self._key),
            clock=self._clock,
            randomness=self._randomness,
            runner=self._runner,
            readers=self._readers,
        )
        view._prefix = self._prefix + prefix + "/"
        view._shared = self._shared
        self._shared.scopes.add(view._prefix)
        return view

    def encrypt_data(self, data: bytes, context: str = "") -> bytes:
        """Seal bytes that the caller keeps elsewhere, such as in a database row.

        :param context: what the bytes are bound to; the same is needed to open them.
        """
        return self._seal(data, _DATA_CONTEXT + self._prefix.encode() + b"\x00" + context.encode())

    def decrypt_data(self, data: bytes, context: str = "") -> bytes:
        """Open what `encrypt_data` sealed.

        :raises StorageError: damaged, or sealed with another key or context.
        """
        return self._unseal(data, _DATA_CONTEXT + self._prefix.encode() + b"\x00" + context.encode())

    async def store(
        self, name: str, data: bytes, *, both_generations: bool = False, keep_previous: bool = True
    ) -> None:
        """Seal ``data`` and put it under ``name``, durably and in one step.

        Cancelling waits for a write that has begun.

        :param name: a relative path with forward slashes, such as ``devices/<id>``.
        :param both_generations: also overwrite the previous generation, so that no recovery brings back what was
            there (a revoked device, a replaced key).
        :param keep_previous: False for what may as well be lost, and needs half the room then.
        :raises StorageError: the name is not valid, the disk is full or cannot be written; the old data stays.
        """
        path = self._path(name)
        await self._in_order(path, self._store, path, name, bytes(data), both_generations, keep_previous)

    async def load(self, name: str) -> bytes | None:
        """Give what is stored under ``name``.

        :returns: ``None`` if there is nothing.
        :raises StorageError: no generation of it can be opened; the message says what to do.
        """
        path = self._path(name)
        return await self._run(self._load, path, name)

    async def delete(self, name: str) -> None:
        """Remove all generations; harmless if there is nothing.

        :raises StorageError: they cannot be removed.
        """
        path = self._path(name)
        await self._in_order(path, self._delete, path)

    async def list(self, prefix: str = "") -> list[str]:
        """Give the names in a folder and below, sorted.

        :param prefix: the folder, such as ``devices``; empty for everything that is not in a scoped view.
        :raises StorageError: the folder's name is not valid, or it cannot be read.
        """
        folder = self._folder(prefix)
        return await self._run(self._list, folder)

    async def sizes(self, prefix: str = "") -> dict[str, int]:
        """Give what each name in a folder and below takes on the disk, all generations together, in bytes.

        :raises StorageError: as `list`.
        """
        folder = self._folder(prefix)
        return await self._run(self._sizes, folder)

    async def keep(self, folder: Path) -> None:
        """Keep the whole store as it is now, in a folder beside it; does nothing if that is there already.

        :raises StorageError: that is not possible.
        """
        await self._run(self._keep, folder)

    async def convert(self, prefix: str, convert: Callable[[bytes], bytes | None]) -> None:
        """Rewrite what is stored in a folder and below, in both generations. What is damaged stays as it is.

        :param convert: gives new contents, or None to leave a file; raises `SerializationError` if it cannot.
        :raises StorageError: a file cannot be read or written; those before it are rewritten.
        """
        folder = self._folder(prefix)
        await self._run(self._convert, folder, convert)

    async def prune(self, prefix: str, older_than_s: float) -> int:
        """Remove what was last stored in a folder longer ago than that.

        :param older_than_s: seconds, by the wall clock.
        :returns: how many names were removed. Damaged files stay, for somebody to look at.
        :raises StorageError: as `list` and `delete`.
        """
        folder = self._folder(prefix)
        return await self._run(self._prune, folder, self._clock.now() - older_than_s)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await self._runner(self._locked, function, *args)

    def _locked(self, function: Callable[..., T], *args: Any) -> T:
        with self._shared.lock:
            self._prepare()
            return function(*args)

    async def _in_order(self, path: Path, function: Callable[..., None], *args: Any) -> None:
        """Run a change of a file so that of several under way the one called last has the last word."""
        shared = self._shared
        ticket = next(shared.tickets)
        queue = shared.queues.setdefault(path, _Queue())
        queue.waiting += 1
        try:
            await self._run(self._unless_superseded, queue, ticket, function, *args)
        finally:
            queue.waiting -= 1
            if queue.waiting == 0 and shared.queues.get(path) is queue:
                del shared.queues[path]

    def _unless_superseded(self, queue: _Queue, ticket: int, function: Callable[..., None], *args: Any) -> None:
        # Worker threads start in any order: a later call that got here first has already settled the outcome.
        if ticket > queue.last_done:
            function(*args)
            queue.last_done = ticket

    def _prepare(self) -> None:
        if not self._shared.ready:
            ensure_private_directory(self._root)
            clean_temporary(self._root)
            self._shared.ready = True

    def _store(self, path: Path, name: str, data: bytes, both_generations: bool, keep_previous: bool) -> None:
        ensure_private_directory(path.parent, below=self._root)
        sealed = self._seal(data, self._context(name))
        if both_generations:
            write_atomic(path, sealed, randomness=self._randomness, keep_previous=False)
            try:
                write_atomic(previous_path(path), sealed, randomness=self._randomness, keep_previous=False)
                remove_durably(_damaged_path(path), *self._kept(path))
            except StorageError as error:
                raise StorageError(
                    f"{path} was stored, but what it held before is still there: {in_part(error)}"
                ) from error
            return
        # A damaged file must not push out the good generation before it.
        current_is_good = keep_previous and self._try_open(path, name)[0] is not None
        write_atomic(path, sealed, randomness=self._randomness, keep_previous=current_is_good)

    def _load(self, path: Path, name: str) -> bytes | None:
        plaintext, damage = self._try_open(path, name)
        if plaintext is not None:
            return plaintext
        previous = previous_path(path)
        plaintext, previous_damage = self._try_open(previous, name)
        if plaintext is None:
            if damage is None and previous_damage is None:
                return None
            raise StorageError(
                f"{path} is {damage or 'missing'}, and the generation before it is {previous_damage or 'missing'}. "
                f"Restore {path.name} from a backup, or remove it and {previous.name} to go on without what they hold."
            )
        self._restore(path, name, plaintext, damage)
        return plaintext

    def _restore(self, path: Path, name: str, plaintext: bytes, damage: str | None) -> None:
        sentence = f"{path} was {damage or 'missing'}; the generation before it was restored."
        logger.warning("%s", sentence)
        self._shared.recovered.append(sentence)
        try:
            if damage is not None:
                with contextlib.suppress(OSError):
                    os.link(path, _damaged_path(path), follow_symlinks=False)  # the first damage is kept to look at
            sealed = self._seal(plaintext, self._context(name))
            write_atomic(path, sealed, randomness=self._randomness, keep_previous=False)
        except StorageError as error:
            logger.warning("The restored data could not be written back yet: %s", error)

    def _delete(self, path: Path) -> None:
        # The older generations first: if we die in between, the file is still there rather than back from the dead.
        remove_durably(*self._kept(path), _damaged_path(path), previous_path(path), path)

    def _kept(self, path: Path) -> _Paths:
        """All that there is of a file in copies of the store that migrations have kept."""
        found = []
        try:
            for name in os.listdir(self._root.parent):
                if name.startswith(f"{self._root.name}.v"):
                    copy = self._root.with_name(name) / path.relative_to(self._root)
                    found += [_damaged_path(copy), previous_path(copy), copy]
            return [copy for copy in found if os.path.lexists(copy)]
        except OSError as error:
            raise StorageError(f"Cannot read the directory {self._root.parent}: {error.strerror}.") from error

    def _keep(self, folder: Path) -> None:
        if folder.exists():
            return  # by a migration that was cut short
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        link_tree(self._root, partial)
        rename_durably(partial, folder)

    def _convert(self, folder: Path, convert: Callable[[bytes], bytes | None]) -> None:
        base = self._root / self._prefix
        for path in sorted(set(self._files(folder))):
            name = path.relative_to(base).as_posix()
            for generation in (path, previous_path(path)):
                plaintext, _ = self._try_open(generation, name)
                try:
                    converted = None if plaintext is None else convert(plaintext)
                except SerializationError as error:
                    logger.warning("%s stays as it is: %s", generation, error)
                    continue
                if converted is not None:
                    sealed = self._seal(converted, self._context(name))
                    write_atomic(generation, sealed, randomness=self._randomness, keep_previous=False)

    def _list(self, folder: Path) -> _Names:
        base = self._root / self._prefix
        return sorted({path.relative_to(base).as_posix() for path in self._files(folder)})

    def _files(self, folder: Path) -> Iterator[Path]:
        """Give each file that has a generation, perhaps twice."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StorageError(f"Cannot read the directory {folder}: {error.strerror}.") from error
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                if not self._is_foreign(path):
                    yield from self._files(path)
            elif entry.is_file(follow_symlinks=False):
                name = entry.name.removesuffix(PREVIOUS_SUFFIX)
                if _is_component(name):
                    yield path.with_name(name)

    def _sizes(self, folder: Path) -> dict[str, int]:
        base = self._root / self._prefix
        found: dict[str, int] = {}
        for path in set(self._files(folder)):
            for generation in (path, previous_path(path), _damaged_path(path)):
                with contextlib.suppress(FileNotFoundError):
                    name = path.relative_to(base).as_posix()
                    found[name] = found.get(name, 0) + generation.lstat().st_size
        return found

    def _prune(self, folder: Path, before: float) -> int:
        pruned = 0
        for path in sorted(set(self._files(folder))):
            stored_at = _stored_at(path)
            if stored_at is not None and stored_at < before:
                self._delete(path)
                pruned += 1
        return pruned

    def _try_open(self, path: Path, name: str) -> tuple[bytes | None, str | None]:
        """Open one generation: its plaintext, or ``None`` and what is wrong with it (``None``: missing).

        :raises StorageError: it cannot be read now; that is no reason to go back to an older one.
        """
        try:
            sealed = read_bounded(path, _MAX_FILE_BYTES)
            if sealed is None:
                return None, None
            plaintext = self._unseal(sealed, self._context(name))
        except NewerFormatError as error:
            raise NewerFormatError(f"{path}: {error}") from error
        except (DamagedError, WrongKeyError) as error:
            return None, f"damaged ({str(error).rstrip('.')})"
        if header_version(sealed) != FORMAT_VERSION:
            self._upgrade(path, name, plaintext)
        return plaintext, None

    def _upgrade(self, path: Path, name: str, plaintext: bytes) -> None:
        logger.info("%s is rewritten in format %d.", path, FORMAT_VERSION)
        try:
            sealed = self._seal(plaintext, self._context(name))
            write_atomic(path, sealed, randomness=self._randomness, keep_previous=False)
        except StorageError as error:
            logger.warning("It stays in its old format for now: %s", error)

    def _seal(self, data: bytes, context: bytes) -> bytes:
        return seal(
            data,
            self._key,
            mode=Mode.SUBKEY,
            kdf=HKDF_SHA256,
            context=context,
            stored_at=self._clock.now(),
            randomness=self._randomness,
        )

    def _unseal(self, data: bytes, context: bytes) -> bytes:
        return unseal(data, self._key, mode=Mode.SUBKEY, context=context, readers=self._readers)

    def _context(self, name: str) -> bytes:
        return _FILE_CONTEXT + (self._prefix + name).encode()

    def _path(self, name: str) -> Path:
        _check_name(name)
        path = self._root / self._prefix / name
        if self._is_foreign(path):
            raise StorageError(f"The name {name!r} belongs to a scoped storage.")
        return path

    def _folder(self, prefix: str) -> Path:
        prefix = prefix.removesuffix("/")
        return self._path(prefix) if prefix else self._root / self._prefix

    def _is_foreign(self, path: Path) -> bool:
        full = path.relative_to(self._root).as_posix() + "/"
        return any(
            full.startswith(scope) and scope != self._prefix and scope.startswith(self._prefix)
            for scope in self._shared.scopes
        )


def _check_name(name: str) -> None:
    parts = name.split("/")
    if len(name) > MAX_NAME_CHARACTERS or len(parts) > MAX_NAME_DEPTH or not all(map(_is_component, parts)):
        raise StorageError(
            f"{name[:80]!r} is not a name for stored data: up to {MAX_NAME_DEPTH} parts with forward slashes between "
            "them, each of ASCII letters, digits and the signs _ @ + = - . are allowed."
        )


def _is_component(part: str) -> bool:
    return _COMPONENT.fullmatch(part) is not None and not part.endswith(_RESERVED_ENDINGS)


def _damaged_path(path: Path) -> Path:
    return path.with_name(path.name + _DAMAGED_SUFFIX)


def _stored_at(path: Path) -> float | None:
    """Read when the newest readable generation was stored, in seconds since the Unix epoch."""
    for generation in (path, previous_path(path)):
        with contextlib.suppress(StorageError):
            data = read_bounded(generation, _MAX_FILE_BYTES)
            if data is not None:
                return read_header(data).stored_at
    return None
