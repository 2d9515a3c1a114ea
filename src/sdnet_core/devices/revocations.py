"""Which pairings have ended for good, in a list that is only ever added to.

Each revocation is one authenticated line of the file ``revoked`` in the data directory, on disk before anything else
of it happens. It is read at every start, after the store has put right what was damaged and before the first session:
a device record that came back from an older generation or from a backup is refused, because its pairing is on the
list. A sealed copy of the list lies in the store, in both generations, so that damage to either one is noticed and put
right from the other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..clock import Clock, Randomness, Runner
from ..errors import StorageError
from ..storage import DamagedError, SecureStorage, write_atomic
from ..storage.atomic import read_bounded
from ..storage.chained import Chain, append_durably
from .records import PairedDevice

__all__ = ["FILE_NAME", "Ended", "Revocation", "RevocationList"]

logger = logging.getLogger(__name__)

FILE_NAME = "revoked"
COPY_NAME = "revocations"
"""Of the sealed copy, in the node's store."""
MAX_LIST_BYTES = 8 << 20
"""Some 30,000 revocations."""


class Ended(StrEnum):
    """How a pairing ended for good."""

    REVOKED = "revoked"
    """Its device is refused until a person pairs it anew."""
    FORGOTTEN = "forgotten"
    """Its device is a stranger again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """One line of the list.

    :param pairing_id: 16 bytes.
    :param at: seconds since the epoch.
    """

    how: Ended
    device_id: uuid.UUID
    pairing_id: bytes
    peer_id: str
    at: float

    def values(self) -> dict[str, Any]:
        """What the line says."""
        return {
            "at": self.at,
            "how": str(self.how),
            "device": str(self.device_id),
            "pairing": self.pairing_id.hex(),
            "peer": self.peer_id,
        }

    @classmethod
    def of(cls, values: dict[str, Any]) -> Revocation:
        """Read what a line says.

        :raises DamagedError: it says something else.
        """
        try:
            return cls(
                how=Ended(values["how"]),
                device_id=uuid.UUID(values["device"]),
                pairing_id=bytes.fromhex(values["pairing"]),
                peer_id=str(values["peer"]),
                at=float(values["at"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DamagedError(f"It is not a revocation: {error!r}.") from error


@dataclass(frozen=True, slots=True)
class _Read:
    """What could be read of one of the two copies.

    :param data: the lines that are right, up to the first that is not.
    :param damage: what is wrong with the rest; empty if nothing is.
    :param torn: whether the rest is the beginning of a line only, as a crash leaves it.
    """

    data: bytes
    chain: Chain
    entries: tuple[Revocation, ...]
    damage: str = ""
    torn: bool = False


class RevocationList:
    """The list of one node. `load` it first; changes come one after the other, from the command channel.

    :param directory: the data directory.
    :param key: 32 bytes, from `Vault.subkey`.
    :param storage: the node's sealed store, for the copy.
    :ivar recovered: what was damaged and put right, one sentence each.
    """

    def __init__(
        self,
        directory: Path,
        key: bytes,
        storage: SecureStorage,
        *,
        clock: Clock,
        randomness: Randomness,
        runner: Runner,
    ) -> None:
        self._path = directory / FILE_NAME
        self._key = key
        self._storage = storage
        self._clock = clock
        self._randomness = randomness
        self._runner = runner
        self._chain = Chain(key)
        self._data = b""
        self._entries: dict[bytes, Revocation] = {}
        self._peers: dict[str, Ended] = {}
        self.recovered: list[str] = []

    def __contains__(self, pairing_id: bytes) -> bool:
        return pairing_id in self._entries

    def get(self, pairing_id: bytes) -> Revocation | None:
        """The revocation of a pairing, None if it was not revoked."""
        return self._entries.get(pairing_id)

    def is_revoked(self, peer_id: str) -> bool:
        """Whether the last that happened to a peer's pairings is that one was revoked."""
        return self._peers.get(peer_id) is Ended.REVOKED

    async def load(self) -> None:
        """Read the list, and put right from one copy what is damaged in the other; `recovered` tells.

        :raises StorageError: revocations are lost, in both copies. The node must not run then: it could let a revoked
            device in.
        """
        file = await self._runner(self._read_file)
        copy = await self._read_copy()
        if copy.chain.number > file.chain.number:
            if not copy.data.startswith(file.data):
                raise self._lost("it and its sealed copy contradict each other")
            await self._restore_file(copy, file.damage or "was too short")
            self._take(copy)
        elif file.damage and copy.damage:
            raise self._lost(f"{file.damage}, and its sealed copy {copy.damage}")
        elif file.damage and not file.torn and (not copy.data or copy.chain.number < file.chain.number):
            raise self._lost(file.damage)
        else:
            if file.damage:
                # Of what follows nobody was told that it was done: the copy would hold it.
                await self._restore_file(file, file.damage)
            if copy.data != file.data:
                if copy.damage:
                    self._tell(f"The sealed copy of {self._path} {copy.damage}; it was written anew.")
                await self._write_copy(file.data)
            self._take(file)

    async def add(self, device: PairedDevice, how: Ended) -> Revocation:
        """End a pairing for good. It is on disk when this returns, and in force at once.

        :raises StorageError: it could not be stored; the list is as before.
        """
        revocation = Revocation(
            how=how,
            device_id=device.device_id,
            pairing_id=device.pairing_id,
            peer_id=device.peer_id,
            at=self._clock.now(),
        )
        chain = self._chain.copy()
        line = chain.append(revocation.values())
        if len(self._data) + len(line) > MAX_LIST_BYTES:
            raise StorageError(f"{self._path} has reached its largest size; nothing was changed.")
        await self._runner(append_durably, self._path, line)
        self._chain, self._data = chain, self._data + line
        self._put(revocation)
        try:
            await self._write_copy(self._data)
        except StorageError as error:
            # The list itself is safe; the next start writes the copy.
            logger.warning("the sealed copy of %s could not be written: %s", self._path, error)
        return revocation

    def _take(self, read: _Read) -> None:
        self._chain, self._data = read.chain, read.data
        for revocation in read.entries:
            self._put(revocation)

    def _put(self, revocation: Revocation) -> None:
        self._entries[revocation.pairing_id] = revocation
        self._peers[revocation.peer_id] = revocation.how

    def _read_file(self) -> _Read:
        try:
            data = read_bounded(self._path, MAX_LIST_BYTES)
        except DamagedError as error:
            return _Read(b"", Chain(self._key), (), damage=f"is damaged ({str(error).rstrip('.')})")
        return self._parse(data or b"")

    async def _read_copy(self) -> _Read:
        try:
            data = await self._storage.load(COPY_NAME)
        except StorageError as error:
            return _Read(b"", Chain(self._key), (), damage=f"cannot be opened ({str(error).rstrip('.')})")
        return self._parse(data or b"")

    def _parse(self, data: bytes) -> _Read:
        chain, good = Chain(self._key), 0
        entries: list[Revocation] = []
        while good < len(data):
            end = data.find(b"\n", good)
            if end < 0:
                return _Read(data[:good], chain, tuple(entries), damage="ends in an unfinished line", torn=True)
            try:
                after = chain.copy()
                entries.append(Revocation.of(after.take(data[good:end])))
            except DamagedError as error:
                damage = f"is damaged in line {chain.number + 1} ({str(error).rstrip('.')})"
                return _Read(data[:good], chain, tuple(entries), damage=damage)
            chain, good = after, end + 1
        return _Read(data, chain, tuple(entries))

    async def _restore_file(self, source: _Read, damage: str) -> None:
        await self._runner(self._rewrite, source.data)
        self._tell(f"{self._path} {damage}; it was restored with {source.chain.number} revocations.")

    def _rewrite(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.link(self._path, self._path.with_name(f"{FILE_NAME}.damaged"), follow_symlinks=False)
        write_atomic(self._path, data, randomness=self._randomness, keep_previous=False)

    async def _write_copy(self, data: bytes) -> None:
        await self._storage.store(COPY_NAME, data, both_generations=True)

    def _tell(self, sentence: str) -> None:
        logger.warning("%s", sentence)
        self.recovered.append(sentence)

    def _lost(self, damage: str) -> StorageError:
        return StorageError(
            f"The list of revoked devices, {self._path}, {damage}. To be safe the node does not start, since it could "
            f"let a revoked device in. Restore {FILE_NAME} from a backup; or remove it and "
            f"{self._storage.root / COPY_NAME}* and then revoke anew every device that must not come back."
        )
