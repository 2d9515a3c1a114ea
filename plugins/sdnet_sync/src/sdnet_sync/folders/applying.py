"""Brings a mirror's folder to what the library says (blocking): decides what is to be done, and does it.

Nothing is lost on the way: what is replaced or deleted is kept, and a file that has changed since it was read last is
left alone until its change is in the library.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sdnet_core.errors import ConflictError
from sdnet_file_transfer import sync_filesystem

from ..operations import Role
from ..state import EntryState
from ..store import Store
from .contents import MIN_BLOCK_BYTES
from .entries import EXECUTABLE, FILE_KIND, FileInfo, Mode, effective, file_id, file_key, versions_of
from .index import Index, Row
from .parts import PartFile, copy_small, part_name
from .publish import resolver_of
from .scan import Ignore
from .tree import DiskFile, Placing, Tree

__all__ = ["Applier", "Done", "Place", "Plan", "make_plan"]

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Place:
    """A file that is to be as the library says.

    :param row: what lies there now; None for nothing that we know of.
    """

    key: str
    info: FileInfo
    row: Row | None


@dataclass(slots=True)
class Plan:
    """What is to be done.

    :ivar removes: files to delete.
    :ivar renames: files to give another spelling of their name.
    :ivar touches: files of which only time or permission changed.
    :ivar settle: keys of conflicts that are ours to settle.
    """

    places: list[Place] = field(default_factory=list)
    removes: list[Row] = field(default_factory=list)
    renames: list[Place] = field(default_factory=list)
    touches: list[Place] = field(default_factory=list)
    settle: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Done:
    """What became of it.

    :ivar fetch: files whose contents are not here.
    :ivar changed: paths that are not what we knew: to be looked at again, before anything else happens to them.
    :ivar problems: what cannot be done, and why, by path.
    :ivar again: keys to plan once more, as something was in the way.
    :ivar later: keys to plan once more, as others came first.
    """

    fetch: list[Place] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    placed: int = 0


def make_plan(store: Store, index: Index, location: str, keys: Sequence[str], ignore: Ignore) -> Plan:
    """Compare the library with what we know of the disk.

    :param keys: of the files to look at.
    """
    plan = Plan()
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        by_key = {store.key(FILE_KIND, file_id(location, key)): key for key in chunk}
        states = store.get_many(list(by_key))
        rows = index.get_many(chunk)
        for entry_key, key in by_key.items():
            _plan_one(plan, store, key, states.get(entry_key), rows.get(key), ignore)
    return plan


def _plan_one(plan: Plan, store: Store, key: str, state: EntryState | None, row: Row | None, ignore: Ignore) -> None:
    info = effective(state)
    path = info.path if info is not None else row.info.path if row is not None else ""
    if ignore.matches_any_part(path):
        return
    if info is not None and file_key(info.path, Mode.MIRROR) != key:
        return  # no honest device writes that: it could name a file that another entry is about
    if state is not None and state.conflicted:
        versions = versions_of(state)
        if versions and resolver_of(versions, store.members.role) == store.device:
            plan.settle.append(key)
    if info is None:
        if row is not None:
            plan.removes.append(row)
        return
    if row is None or row.info.digest != info.digest:
        plan.places.append(Place(key, info, row))
    elif row.info.path != info.path:
        plan.renames.append(Place(key, info, row))
    elif row.info != info:
        plan.touches.append(Place(key, info, row))


def may_write(role: Role) -> bool:
    """Whether what changes here goes into the library."""
    return role >= Role.WRITER


class Applier:
    """Does what a plan says, as far as that needs nothing from others. Made anew for each plan.

    :param keep_versions: whether replaced versions are kept.
    """

    def __init__(self, tree: Tree, index: Index, *, keep_versions: bool) -> None:
        self._tree = tree
        self._index = index
        self._keep_versions = keep_versions
        # What one of these keeps lies together, and never meets what another one kept in the same second.
        self._batch = secrets.token_hex(4)

    def apply(self, plan: Plan) -> Done:
        """Do it."""
        done = Done()
        rows: list[Row] = []
        gone: list[str] = []
        removed = {row.info.digest: row for row in plan.removes}
        places: list[Place] = []
        for place in plan.places:
            source = removed.get(place.info.digest) if place.row is None else None
            if source is not None and self._move(source, place, rows, done):
                gone.append(source.key)
                del removed[place.info.digest]
                plan.removes.remove(source)
            else:
                places.append(place)
        for place in plan.renames:
            assert place.row is not None
            self._move(place.row, place, rows, done)
        for place in plan.touches:
            self._touch(place, rows, done)
        if rows or gone:
            self._index.change(rows, gone=gone)
        self._place_from_here(places, done)
        self._remove(plan.removes, done)
        return done

    def _move(self, source: Row, place: Place, rows: list[Row], done: Done) -> bool:
        try:
            disk = self._tree.move(source.local, place.info.path, expected=source.disk)
            disk = self._fit(place.info, disk)
        except ConflictError:
            done.changed += [source.local, place.info.path]
            return False
        except OSError as error:
            done.problems[place.info.path] = error.strerror or str(error)
            return False
        rows.append(Row(place.key, place.info.path, place.info, disk))
        return True

    def _touch(self, place: Place, rows: list[Row], done: Done) -> None:
        row = place.row
        assert row is not None
        try:
            disk = self._tree.disk_file(row.local)
            if disk is None or disk.ctime_ns != row.disk.ctime_ns:
                done.changed.append(row.local)
                return
            rows.append(Row(row.key, row.local, place.info, self._fit(place.info, disk, row.local)))
        except OSError as error:
            done.problems[row.local] = error.strerror or str(error)

    def _fit(self, info: FileInfo, disk: DiskFile, local: str | None = None) -> DiskFile:
        """Give a file the time and permission that the library says."""
        executable = bool(info.flags & EXECUTABLE)
        if disk.mtime_ns == info.mtime_ns and disk.executable == executable:
            return disk
        return self._tree.touch(local or info.path, mtime_ns=info.mtime_ns, executable=executable)

    def _place_from_here(self, places: list[Place], done: Done) -> None:
        """Place those whose contents are in the folder already, or in what was kept; the others are to be fetched."""
        found = self._index.with_digests(list({place.info.digest for place in places})) if places else {}
        ready: list[Place] = []
        parts: dict[str, str] = {}
        taken: set[str] = set()
        for number, place in enumerate(places):
            info = place.info
            name = part_name(info.digest)
            if name in taken:
                if info.size > MIN_BLOCK_BYTES:
                    done.later.append(place.key)  # one after the other: the same part serves them all
                    continue
                name = f"{name}-{number}"
            sources = [found[info.digest].local] if info.digest in found else []
            if not sources:
                sources = [kept.place for kept in self._index.kept(digest=info.digest, limit=2)]
            if any(self._copy(info, source, name) for source in sources):
                taken.add(name)
                parts[place.key] = name
                ready.append(place)
            else:
                done.fetch.append(place)
        self.place_ready(ready, done, parts)

    def _copy(self, info: FileInfo, source: str, name: str) -> bool:
        try:
            if info.size <= MIN_BLOCK_BYTES:
                return copy_small(self._tree, info, source, name)
            recipe = self._index.recipe(info.digest)
            if recipe is None:
                return False
            part = PartFile(self._tree, info, recipe)
            try:
                if part.prepare([source]):
                    return False
                part.finish()
                return True
            finally:
                part.close()
        except OSError:
            return False

    def place_ready(self, places: Iterable[Place], done: Done, parts: Mapping[str, str] = {}) -> None:
        """Make whole parts visible.

        :param parts: the part for a key, where it is not called after its contents.
        :raises OSError: the disk failed.
        """
        places = list(places)
        if not places:
            return
        kept: list[tuple[str, str, bytes, int, float, bool]] = []
        keeps: dict[str, str] = {}
        for place in places:
            old = place.row
            if old is not None and self._keep_versions:
                keeps[place.key] = self._keep_place(old.local, deleted=False)
                kept.append((keeps[place.key], old.info.path, old.info.digest, old.info.size, time.time(), False))
        if kept:
            self._index.keep(kept)
        self._sync()
        rows: list[Row] = []
        with self._tree.placing() as placing:
            for place in places:
                name = parts.get(place.key) or part_name(place.info.digest)
                row = self._place(placing, name, place, keeps.get(place.key), done)
                if row is not None:
                    rows.append(row)
        # A row must not be on the disk before the file it speaks of: that would look like a deletion.
        self._sync()
        self._index.change(rows)

    def _place(self, placing: Placing, name: str, place: Place, keep: str | None, done: Done) -> Row | None:
        target, old = place.info.path, place.row
        in_place = old is not None and old.info.path == target
        local = old.local if old is not None and in_place else target
        try:
            disk = placing.place(
                name,
                local,
                replaces=old.disk if old is not None and in_place else None,
                keep=keep if in_place else None,
            )
            if old is not None and not in_place:
                self._tree.retire(old.local, expected=old.disk, keep=self._keep_place(old.local, deleted=False))
            done.placed += 1
            return Row(place.key, local, place.info, self._fit(place.info, disk, local))
        except ConflictError:
            done.changed += [target, *([old.local] if old is not None else [])]
            done.again.append(place.key)
        except FileNotFoundError:
            done.again.append(place.key)  # the part is gone: it is fetched again
        except OSError as error:
            done.problems[target] = error.strerror or str(error)
        return None

    def _sync(self) -> None:
        with self._tree.parts() as parts:
            sync_filesystem(parts)

    def _remove(self, removes: Iterable[Row], done: Done) -> None:
        gone: list[str] = []
        kept: list[tuple[str, str, bytes, int, float, bool]] = []
        for old in removes:
            place = self._keep_place(old.local, deleted=True)
            try:
                self._tree.retire(old.local, expected=old.disk, keep=place)
            except ConflictError:
                done.changed.append(old.local)
                continue
            except OSError as error:
                done.problems[old.local] = error.strerror or str(error)
                continue
            kept.append((place, old.info.path, old.info.digest, old.info.size, time.time(), True))
            gone.append(old.key)
        if gone:
            self._index.keep(kept)
            self._index.change(gone=gone)

    def _keep_place(self, local: str, *, deleted: bool) -> str:
        return self._tree.kept_place(local, deleted=deleted, batch=self._batch)
