"""What a member can write into a library, or say about contents, that must do no harm to a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnet_core.errors import NetworkingError, NotFoundError, ProtocolError
from sdnet_core.wire import decode, encode
from sdnet_sync import Role
from sdnet_sync.folders.content_messages import (
    MAX_CONTENT_FRAME_BYTES,
    AnyContentAnswer,
    AnyContentRequest,
    Block,
    Files,
    GetBlocks,
    GetFiles,
    GetRecipe,
    Recipe,
)
from sdnet_sync.folders.contents import block_count, block_size, digest_of, hash_block
from sdnet_sync.folders.entries import Mode, conflict_name, file_key, read_info
from sdnet_sync.folders.fetching import ContentStream, open_content

from .nodes import eventually, nodes, service, shared
from .test_folders import holds, mirrored, tree, write

pytestmark = pytest.mark.anyio

EVIL_PATHS = (
    "../escaped.txt",
    "/absolute.txt",
    "sub/../../escaped.txt",
    "./here.txt",
    "a//b.txt",
    "nul\0.txt",
    "line\nbreak.txt",
    "right\u202eto-left.txt",
    "CON",
    "trailing.",
    "x" * 300,
    ".sdnet/location",
    ".SDNET/location",
    ".sdnet/trash/x",
)


async def test_paths_that_lead_elsewhere_are_not_written(tmp_path: Path) -> None:
    async with mirrored(tmp_path, files={"a.txt": "one"}) as (_, (la, _), (_, b), location):
        await holds(b, {"a.txt": "one"})
        digest = hash_block(b"one")
        for number, path in enumerate(EVIL_PATHS):
            value = [path, 3, 0, 0, digest]
            await la.put("sdnet.file", f"{location.id}/{path}"[:500].replace("\0", ""), {"file": value})
            await la.put("sdnet.file", f"{location.id}/other{number}", {"file": value})
        # An entry that names another one's file, and such as make no sense.
        await la.put("sdnet.file", f"{location.id}/b.txt", {"file": ["a.txt", 3, 0, 0, hash_block(b"two")]})
        for number, value in enumerate(([], [1, 2, 3, 4, 5], ["x", -1, 0, 0, digest], ["x", 3, 0, 9, digest], "text")):
            await la.put("sdnet.file", f"{location.id}/odd{number}", {"file": value})
        await la.put("sdnet.location", "short", {"name": "x"})
        await la.put("sdnet.holder", f"{location.id}/nonsense", {"sequence": "x"})
        await la.put("sdnet.file", f"{location.id}/good.txt", {"file": ["good.txt", 3, 0, 0, digest]})
        await holds(b, {"a.txt": "one", "good.txt": "one"})
        assert sorted(os.listdir(tmp_path)) == ["folder0", "folder1"]
        assert sorted(os.listdir(b)) == [".sdnet", "a.txt", "good.txt"]
        assert (b / ".sdnet" / "location").read_text().startswith(location.id)


async def test_contents_are_for_members_and_of_their_library_only(tmp_path: Path) -> None:
    root = tmp_path / "secret"
    write(root, "plan.txt", "for members")
    write(root, "large.bin", bytes(500_000))
    async with nodes(3) as linked:
        a, b, c = linked
        [library, other] = [(await shared(a, b))[0], await service(a).create("Other")]
        folders = service(a).folders
        location = await folders.add_location(library, root)
        await folders.folder(location.id).settled.wait()
        digest, size = hash_block(b"for members"), 500_000
        large = digest_of(hash_block(bytes(block_size(size))) * 3 + hash_block(bytes(size % block_size(size))))

        async def ask(core: Any, library_id: bytes) -> tuple[bytes | None, bool]:
            ctx = service(core).folders.ctx
            async with open_content(ctx, ctx.get_device(a.device_info.id), library_id) as stream:
                found = [data async for group in stream.files([[digest]]) for _, data in group]
                try:
                    await stream.recipe(large, size)
                except NotFoundError:
                    return found[0], False
                return found[0], True

        assert await ask(b, library.library) == (b"for members", True)
        assert await ask(b, other.library) == (None, False)
        assert await ask(c, library.library) == (None, False)
        assert await ask(b, bytes(16)) == (None, False)
        await service(a).set_role(library.id, b.device_info.id, Role.NONE)
        assert await ask(b, library.library) == (None, False)
        # A file that changed since is not what was published.
        (root / "plan.txt").write_text("something else")
        await service(a).pause(library.id)
        assert await ask(b, library.library) == (None, False)


class Answers:
    """A peer that answers as it likes."""

    def __init__(self, *answers: Any) -> None:
        self._answers = [encode(answer) for answer in answers]

    def messages(self, *, max_bytes: int) -> Answers:
        return self

    async def send(self, message: Any) -> None:
        decode(encode(message), AnyContentRequest)

    async def receive_bytes(self) -> bytes:
        if not self._answers:
            await anyio.sleep_forever()
        return self._answers.pop(0)


async def test_answers_that_are_not_what_was_asked_for() -> None:
    data = b"sound"
    digest = hash_block(data)
    size = 300_000
    blocks = [os.urandom(block_size(size)) for _ in range(2)] + [os.urandom(size - 2 * block_size(size))]
    recipe = b"".join(map(hash_block, blocks))

    def stream(*answers: Any) -> ContentStream:
        return ContentStream(Answers(*answers), bytes(16))  # type: ignore[arg-type]

    async def files(*answers: Any) -> list[Any]:
        return [item async for group in stream(*answers).files([[digest]]) for item in group]

    assert await files(Files(contents=(data,))) == [(digest, data)]
    assert await files(Files(contents=(b"forged",))) == [(digest, None)]
    for answers in ((Files(contents=(data, data)),), (Block(data=data),), (Recipe(hashes=digest),)):
        with pytest.raises(ProtocolError):
            await files(*answers)
    assert await stream(Recipe(hashes=recipe)).recipe(digest_of(recipe), size) == recipe
    for answer in (Recipe(hashes=recipe[:-32]), Recipe(hashes=recipe[:-1] + b"x"), Recipe(hashes=recipe + bytes(32))):
        with pytest.raises(ProtocolError):
            await stream(answer).recipe(digest_of(recipe), size)

    async def first_block(*answers: Any) -> Any:
        return [item async for item in stream(*answers).blocks(digest_of(recipe), size, recipe, [0])]

    assert await first_block(Block(data=blocks[0])) == [(0, blocks[0])]
    with pytest.raises(NotFoundError):
        await first_block(Block(data=blocks[1]))


@pytest.mark.parametrize(
    "message",
    [
        GetFiles(library=bytes(16), digests=(bytes(32),)),
        GetRecipe(library=bytes(16), digest=bytes(32), first=1),
        GetBlocks(library=bytes(16), digest=bytes(32), size=1 << 30, blocks=(0, 5)),
    ],
)
async def test_a_malformed_request_ends_its_stream_and_nothing_else(message: Any) -> None:
    async with nodes(2) as linked:
        a, b = linked
        la, lb = await shared(a, b)
        ctx = service(b).folders.ctx
        for data in (b"", b"\xff" * 50, encode(message)[:-1], encode(message) + b"\0", bytes(MAX_CONTENT_FRAME_BYTES)):
            stream = await ctx.open_stream(a.device_info.id, "sync-content")
            async with stream:
                with pytest.raises((NetworkingError, anyio.BrokenResourceError, anyio.EndOfStream)):
                    await _exchange(stream, data)
        await la.put("note", "1", {"still": "here"})
        await eventually(lambda: _has(lb))


async def _exchange(stream: Any, data: bytes) -> bytes:
    messages = stream.messages(max_bytes=MAX_CONTENT_FRAME_BYTES)
    await messages.send_bytes(data)
    return bytes(await messages.receive_bytes())


async def _has(library: Any) -> bool:
    return await library.get("note", "1") is not None


async def test_a_reader_cannot_change_a_mirror(tmp_path: Path) -> None:
    async with mirrored(tmp_path, files={"a.txt": "one"}, role=Role.READER) as (_, (_, lb), (a, b), location):
        await holds(b, {"a.txt": "one"})
        with pytest.raises(NetworkingError):
            await lb.put("sdnet.file", f"{location.id}/x.txt", {"file": ["x.txt", 3, 0, 0, hash_block(b"one")]})
        (b / "a.txt").unlink()
        await holds(b, {"a.txt": "one"})
        assert tree(a) == {"a.txt": b"one"}


ANY = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=40))


@given(st.one_of(ANY, st.lists(ANY, max_size=6), st.tuples(st.text(), ANY, ANY, ANY, st.binary()).map(list)))
@settings(max_examples=300, deadline=None)
def test_any_value_is_a_file_or_none(value: Any) -> None:
    info = read_info(value)
    if info is not None:
        assert info.value() == value
        assert not info.path.startswith("/")
        assert ".." not in info.path.split("/")


@given(st.text(min_size=1, max_size=300), st.text(max_size=50), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_conflict_copies_have_names_that_can_be_carried(path: str, device: str, number: int) -> None:
    info = read_info([path, 0, 0, 0, bytes(32)])
    if info is not None:
        name = conflict_name(path, "2026-05-01", device, number)
        assert read_info([name, 0, 0, 0, bytes(32)]) is not None
        assert name.rpartition("/")[0] == path.rpartition("/")[0]
        assert len(file_key(name, Mode.MIRROR)) <= 495


@given(st.integers(0, 1 << 44))
@settings(max_examples=300, deadline=None)
def test_blocks_cover_a_file(size: int) -> None:
    count, length = block_count(size), block_size(size)
    assert (count - 1) * length <= max(0, size - (size > 0))
    assert count * length >= size


def test_content_messages_keep_their_form() -> None:
    for message in (Files(contents=(b"a", None)), Recipe(hashes=bytes(64)), Block(data=b"x")):
        assert decode(encode(message), AnyContentAnswer) == message
