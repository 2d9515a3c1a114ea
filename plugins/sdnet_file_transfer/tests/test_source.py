from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from blake3 import blake3

from sdnet_core.errors import InvalidRequestError
from sdnet_file_transfer import messages as m
from sdnet_file_transfer.machine import ManifestCheck
from sdnet_file_transfer.source import Manifest, SourceReader, scan

Tree = dict[str, bytes | None]
MakeTree = Callable[[str, Tree], Path]


def paths(manifest: Manifest) -> list[str]:
    return ["/".join(item.path) for item in manifest.items]


def read_all(
    manifest: Manifest, resume: Mapping[int, m.ItemResume] | None = None
) -> tuple[dict[int, bytes], SourceReader, int]:
    """Put a reader's records together; checks each hash."""
    reader = SourceReader(manifest, resume or {})
    buffer = bytearray(m.MAX_RECORD_BYTES)
    files: dict[int, bytes] = {}
    records = 0
    while length := reader.fill(buffer).length:
        records += 1
        for chunk in m.segments(memoryview(buffer)[:length]):
            if chunk.failure is not None:
                files.pop(chunk.item, None)
                continue
            files[chunk.item] = files.get(chunk.item, b"") + bytes(chunk.data)
            if chunk.digest is not None and not (resume and chunk.item in resume):
                assert chunk.digest == blake3(files[chunk.item]).digest()
    reader.close()
    return files, reader, records


def test_a_folder_is_listed_with_folders_before_what_is_in_them(make_tree: MakeTree) -> None:
    root = make_tree("d", {"b/x": b"1", "a": b"22", "b/empty": None, "ü": b""})
    (root / "a").chmod(0o700)
    manifest = scan([root])
    assert paths(manifest) == ["d", "d/a", "d/b", "d/b/empty", "d/b/x", "d/ü"]
    check = ManifestCheck()
    check.add(manifest.items)
    assert check.items == manifest.items
    assert manifest.total_bytes == 3
    assert manifest.files == 3
    assert [item.executable for item in manifest.items] == [False, True, False, False, False, False]


def test_links_and_special_files_are_left_out_and_said(make_tree: MakeTree) -> None:
    root = make_tree("d", {"a": b"1"})
    os.symlink("/etc/passwd", root / "link")
    os.mkfifo(root / "pipe")
    manifest = scan([root])
    assert paths(manifest) == ["d", "d/a"]
    assert {(Path(left.path).name, left.reason, left.expected) for left in manifest.left} == {
        ("link", "is a link", True),
        ("pipe", "is not a regular file", True),
    }


def test_a_link_that_is_named_itself_is_followed(make_tree: MakeTree) -> None:
    root = make_tree("d", {"a": b"1"})
    os.symlink(root / "a", root.parent / "shortcut")
    manifest = scan([root.parent / "shortcut"])
    assert paths(manifest) == ["shortcut"]
    assert read_all(manifest)[0] == {0: b"1"}


def test_names_that_cannot_be_sent_are_left_out_and_said(make_tree: MakeTree) -> None:
    root = make_tree("d", {"good": b"1", "bad\\name": b"2", "é": b"3", "e\u0301": b"4"})
    (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"5")
    manifest = scan([root])
    assert paths(manifest) == ["d", "d/é", "d/good"]
    assert len(manifest.left) == 3
    assert not any(left.expected for left in manifest.left)


def test_two_of_one_name_get_different_names(make_tree: MakeTree) -> None:
    one, two = make_tree("one", {"x.txt": b"1"}), make_tree("two", {"x.txt": b"2"})
    manifest = scan([one / "x.txt", two / "x.txt"])
    assert paths(manifest) == ["x.txt", "x (1).txt"]


def test_what_is_missing_or_too_much_is_refused(make_tree: MakeTree) -> None:
    root = make_tree("d", {str(number): b"" for number in range(10)})
    with pytest.raises(InvalidRequestError, match="nothing-here"):
        scan([root / "nothing-here"])
    with pytest.raises(InvalidRequestError, match="more than 10"):
        scan([root], max_items=10)
    os.mkfifo(root / "pipe")
    with pytest.raises(InvalidRequestError, match="nothing to send"):
        scan([root / "pipe"])


def test_many_small_files_share_records(make_tree: MakeTree) -> None:
    contents: Tree = {f"{number:04}": os.urandom(number % 2048) for number in range(2000)}
    manifest = scan([make_tree("d", contents)])
    files, reader, records = read_all(manifest)
    assert {manifest.items[index].path[1]: data for index, data in files.items()} == contents
    assert records == 3
    assert (reader.done_items, reader.done_bytes) == (2000, manifest.total_bytes)


@pytest.mark.parametrize("size", [0, 1, m.MAX_RECORD_BYTES - 50, m.MAX_RECORD_BYTES - 49, m.MAX_RECORD_BYTES, 5 << 20])
def test_a_file_of_any_size_comes_whole(make_tree: MakeTree, size: int) -> None:
    data = os.urandom(size)
    root = make_tree("d", {"a": b"small", "b": data, "c": os.urandom(600_000), "d": os.urandom(600_000)})
    manifest = scan([root])
    files, _, _ = read_all(manifest)
    assert files[2] == data
    assert files[4] == (root / "d").read_bytes()


def test_a_file_goes_on_behind_what_is_held_if_that_is_the_same(make_tree: MakeTree) -> None:
    data = os.urandom(3 << 20)
    manifest = scan([make_tree("d", {"x": data}) / "x"])
    held = m.ItemResume(0, 2_000_000, blake3(data[:2_000_000]).digest(), False)
    files, reader, _ = read_all(manifest, {0: held})
    assert files[0] == data[2_000_000:]
    assert reader.done_bytes == len(data)
    other = m.ItemResume(0, 2_000_000, bytes(32), False)
    assert read_all(manifest, {0: other})[0][0] == data


def test_what_is_held_whole_is_confirmed_with_its_hash_alone(make_tree: MakeTree) -> None:
    manifest = scan([make_tree("d", {"x": b"123"}) / "x"])
    files, reader, _ = read_all(manifest, {0: m.ItemResume(0, 3, blake3(b"123").digest(), False)})
    assert files == {0: b""}
    assert reader.done_items == 1
    files, reader, records = read_all(manifest, {0: m.ItemResume(0, 3, bytes(32), True)})
    assert (files, records, reader.done_items, reader.done_bytes) == ({}, 0, 1, 3)


def test_a_file_that_changed_or_vanished_is_given_up_and_the_others_go_on(make_tree: MakeTree) -> None:
    root = make_tree("d", {"a": b"1", "b": b"2", "c": b"3", "d": b"4", "e": b"5"})
    manifest = scan([root])
    (root / "a").write_bytes(b"longer")
    (root / "b").unlink()
    (root / "c").unlink()
    os.symlink("/etc/passwd", root / "c")
    (root / "d").unlink()
    (root / "d").mkdir()
    files, reader, _ = read_all(manifest)
    assert files == {5: b"5"}
    reasons = {Path(left.path).name: left.reason for left in reader.failed}
    assert reasons["a"] == "changed since it was chosen"
    assert reasons["b"] == "vanished"
    assert reasons["c"].startswith("cannot be read")
    assert reasons["d"] == "changed since it was chosen"
    assert reader.done_bytes == 1


def test_a_file_that_changes_while_it_is_read_is_given_up(make_tree: MakeTree) -> None:
    root = make_tree("d", {"x": os.urandom(3 << 20), "y": b"1"})
    manifest = scan([root])
    reader = SourceReader(manifest, {})
    buffer = bytearray(m.MAX_RECORD_BYTES)
    reader.fill(buffer)
    with (root / "x").open("r+b") as handle:
        handle.seek((3 << 20) - 1)
        handle.write(b"!")
    outcomes: dict[int, str | None] = {}
    while length := reader.fill(buffer).length:
        outcomes |= {chunk.item: chunk.failure for chunk in m.segments(memoryview(buffer)[:length])}
    assert outcomes == {1: "changed while it was sent", 2: None}
    assert reader.done_bytes == 1


def test_a_file_that_becomes_shorter_is_given_up(make_tree: MakeTree) -> None:
    root = make_tree("d", {"x": os.urandom(3 << 20)})
    manifest = scan([root / "x"])
    reader = SourceReader(manifest, {})
    buffer = bytearray(m.MAX_RECORD_BYTES)
    reader.fill(buffer)
    os.truncate(root / "x", 1_500_000)
    while reader.fill(buffer).length:
        pass
    assert [left.reason for left in reader.failed] == ["became shorter while it was sent"]


def test_a_reader_stops_when_it_is_told(make_tree: MakeTree) -> None:
    manifest = scan([make_tree("d", {"x": bytes(5 << 20)})])
    reader = SourceReader(manifest, {}, stop=lambda: True)
    assert reader.fill(bytearray(m.MAX_RECORD_BYTES)).length == 0
    reader.close()
