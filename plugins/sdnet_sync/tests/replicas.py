"""Replicas without a network, for tests of what they take from each other."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sdnet_core import NetworkIdentity
from sdnet_core.errors import StorageError
from sdnet_sync.apply import Applied, apply_batches
from sdnet_sync.operations import BatchBody, Membership, Operation, Role, SignedBatch, sign_batch
from sdnet_sync.snapshot import SnapshotReader, SnapshotWriter
from sdnet_sync.standing import NO_HEAD
from sdnet_sync.store import LibraryKeys, Store
from sdnet_sync.transaction import Transaction

LIBRARY, SECRET = b"L" * 16, b"s" * 32


class Wall:
    """A device's clock, which steps."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def now(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


class Seeded:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


class CrashedError(BaseException):
    """The device is dead: nothing that runs on it goes on."""


class DyingConnection:
    """A database connection of a device that dies before its n-th next statement."""

    def __init__(self, db: Any, statements: int) -> None:
        self._db = db
        self._left = statements

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise CrashedError

    def execute(self, *arguments: Any) -> Any:
        self._count()
        return self._db.execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        self._count()
        return self._db.executemany(*arguments)

    def close(self) -> None:
        self._db.close()


class Device:
    """A replica without a network."""

    def __init__(self, home: Path, number: int, founder: Device | None = None) -> None:
        random = Seeded(number)
        self.identity = NetworkIdentity.generate(random)
        self.id = bytes([number]) * 16
        self.wall = Wall()
        first = founder or self
        self._path = home / f"{number}.sqlite3"
        self._keys = LibraryKeys(LIBRARY, SECRET, bytes([number]) * 32, first.id, first.identity.public_key)
        self._random = random
        self.open()

    def open(self) -> None:
        self.store = Store(
            self._path,
            self._keys,
            device=self.id,
            sign=lambda message: self.identity.sign("sync", message),
            clock=self.wall,
            random_bytes=self._random.bytes,
        )

    def restart(self) -> None:
        self.store.close()
        self.open()

    def dies_within(self, statements: int, action: Callable[[], object]) -> bool:
        """Do something on a device that dies before its n-th statement, and start it again.

        :returns: whether it lived to the end.
        """
        store = self.store
        real = store.db
        store.db = DyingConnection(real, statements)  # type: ignore[assignment]
        try:
            action()
        except CrashedError:
            real.close()  # without a commit: as if the power had gone
            store.db = real
            with suppress(StorageError):
                store.close()
            self.open()
            return False
        store.db = real
        return True

    def write(self, *operations: Operation) -> None:
        with self.store.changing():
            transaction = Transaction(self.store)
            transaction.add(operations, 100)
            transaction.finish(changes=False)

    def write_and_crash(self, operation: Operation) -> None:
        with self.store.changing():
            transaction = Transaction(self.store)
            transaction.add([operation], 100)
            transaction.finish(changes=False)
            raise ZeroDivisionError

    def take(self, batches: list[SignedBatch]) -> Applied:
        with self.store.changing():
            transaction = Transaction(self.store)
            applied = apply_batches(transaction, batches)
            transaction.finish(changes=False)
        return applied

    def lacking(self, other: Device, limit: int = 1000) -> list[SignedBatch]:
        found, _ = self.store.read_log(other.store.view().vector, None, max_bytes=1 << 20, max_batches=limit)
        return [batch for _, _, batch in found]

    def role(self, other: Device, role: Role) -> None:
        through = self.store.heads[other.id].sequence if other.id in self.store.heads else 0
        self.write(Membership(other.id, other.identity.public_key, role, "", through))

    def states(self) -> dict[bytes, Any]:
        rows = self.store.db.execute("SELECT key, sealed FROM entry WHERE hash != x'' ORDER BY key").fetchall()
        return {key: self.store.sealer.open(sealed, b"entry" + key) for key, sealed in rows}

    def snapshot_from(self, other: Device) -> None:
        reader = SnapshotReader(other.store)
        writer = SnapshotWriter(reader.begin(), rebuild=self.store.rebuild)
        steps = [writer.start]
        while (page := reader.next_page()) is not None:
            steps.append(lambda transaction, page=page: writer.add(transaction, page))
        reader.close()
        for step in [*steps, writer.finish]:
            with self.store.changing():
                transaction = Transaction(self.store)
                step(transaction)
                transaction.finish(changes=False)


@contextmanager
def devices(count: int, *, home: Path | None = None) -> Iterator[list[Device]]:
    with ExitStack() as stack:
        # In memory where that can be had: nothing here loses its power, and every commit waits for the disk.
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        home = home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sdnet-", dir=shm)))
        founder = Device(home, 1)
        found = [founder, *(Device(home, number, founder) for number in range(2, count + 1))]
        founder.write(Membership(founder.id, founder.identity.public_key, Role.OWNER, "", 0))
        for other in found[1:]:
            founder.role(other, Role.WRITER)
        try:
            yield found
        finally:
            for device in found:
                device.store.close()


def settle(found: list[Device], among: set[Device] | None = None) -> None:
    """Bring replicas together until nothing moves."""
    group = [device for device in found if among is None or device in among]
    for _ in range(4 * len(group)):
        moved = 0
        for giver in group:
            for taker in group:
                if giver is not taker:
                    moved += taker.take(giver.lacking(taker)).taken
        if not moved:
            return
    raise AssertionError("they never stop")


def forge_batch(
    store: Store, /, *operations: Any, sign: Callable[[bytes], bytes] | None = None, **changes: Any
) -> SignedBatch:
    """A batch that follows the last one of a store's device, with some lies in it."""
    head = store.heads.get(store.device, NO_HEAD)
    seen = {a: h.sequence for a, h in store.heads.items() if a != store.device and h.sequence}
    values: dict[str, Any] = {
        "library": store.keys.library,
        "author": store.device,
        "sequence": head.sequence + 1,
        "stamp": store.clock.last + 1,
        "previous": head.hash,
        "seen": {a: n for a, n in seen.items() if n > head.seen.get(a, 0)},
        "operations": operations,
        **changes,
    }
    return sign_batch(BatchBody(**values), sign or store.sign)[0]
