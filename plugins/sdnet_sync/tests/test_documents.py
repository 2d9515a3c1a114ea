"""Texts and maps that several devices edit at once."""

from __future__ import annotations

import random

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycrdt import Doc, Map, Text

from sdnet_core.errors import InvalidRequestError, SerializationError
from sdnet_core.testing import call_route
from sdnet_sync import Document, Library, Role
from sdnet_sync.document_values import (
    MAX_DOCUMENT_BYTES,
    check_update,
    document_state,
    document_value,
    is_document,
    merge_documents,
)

from .nodes import eventually, in_step, nodes, service, shared

pytestmark = pytest.mark.anyio


async def test_edits_appear_at_once_on_both_sides() -> None:
    async with nodes(2) as linked:
        la, lb = await shared(linked[0], linked[1])
        async with la.document("note", "1", "body") as a, lb.document("note", "1", "body") as b:
            text = a.text()
            text += "Hello world"
            a.map()["title"] = "Greeting"
            await eventually(lambda: _reads(b, "Hello world"))
            b.text().insert(5, ",")
            text += "!"
            await eventually(lambda: _reads(a, "Hello, world!"))
            await eventually(lambda: _reads(b, "Hello, world!"))
            assert b.map().to_py() == {"title": "Greeting"}
        await eventually(lambda: in_step(la, lb))
        async with lb.document("note", "1", "body") as again:
            assert str(again.text()) == "Hello, world!"
        assert await la.conflicts() == []


async def test_edits_of_devices_that_were_apart_are_merged() -> None:
    async with nodes(3) as linked:
        libraries = await shared(linked[0], linked[1], linked[2])
        async with libraries[0].document("note", "1") as first:
            text = first.text()
            text += "base"
        await eventually(lambda: in_step(*libraries))
        for one, other in ((0, 1), (0, 2), (1, 2)):
            linked.cut(linked[one], linked[other])
        for number, library in enumerate(libraries):
            async with library.document("note", "1") as document:
                document.text().insert(0, f"<{number}>")
                document.map()[f"from {number}"] = number
        for one, other in ((0, 1), (0, 2), (1, 2)):
            linked.heal(linked[one], linked[other])
        await eventually(lambda: in_step(*libraries))
        texts = []
        for library in libraries:
            entry = await library.get("note", "1")
            assert entry is not None
            assert not entry.conflicted
            async with library.document("note", "1") as document:
                texts.append(str(document.text()))
                assert document.map().to_py() == {f"from {n}": n for n in range(3)}
        assert len(set(texts)) == 1
        assert all(f"<{number}>" in texts[0] for number in range(3))
        assert texts[0].endswith("base")
        assert [await library.conflicts() for library in libraries] == [[], [], []]


async def test_a_lost_signal_loses_no_edit() -> None:
    async with nodes(2) as linked:
        la, lb = await shared(linked[0], linked[1])
        async with la.document("note", "1") as a:
            linked.cut(linked[0], linked[1])
            text = a.text()
            text += "written while apart"
            await a.flush()
            linked.heal(linked[0], linked[1])
            async with lb.document("note", "1") as b:
                await eventually(lambda: _reads(b, "written while apart"))


async def test_garbage_and_readers_edits_change_nothing() -> None:
    async with nodes(2) as linked:
        la, lb = await shared(linked[0], linked[1], role=Role.READER)
        async with la.document("note", "1") as a:
            text = a.text()
            text += "sound"
            forged: Doc[object] = Doc()
            forged.get("text", type=Text).insert(0, "forged")
            lb.send_signal("documents", cbor2.dumps(["note", "1", "document", forged.get_update()]))
            for payload in (b"", b"\xff" * 100, cbor2.dumps(["note"]), cbor2.dumps(["note", "1", "document", b"x"])):
                la.send_signal("documents", payload)
                service(linked[0]).documents.heard(la, _device(linked[1], linked[0]), payload)
            a.apply(b"\x01garbage")
            await la.put("other", "1", {"seen": True})
            await eventually(lambda: _has(lb))
            assert str(a.text()) == "sound"
        await la.put("note", "1", {"document": b"\xffsdnet-document\x01 not a document"})
        async with la.document("note", "1") as again:
            assert str(again.text()) == ""


async def test_a_document_that_is_too_long_is_refused_and_what_was_there_stays() -> None:
    async with nodes(1) as linked:
        library = await service(linked[0]).create("Notes")
        async with library.document("note", "1") as document:
            text = document.text()
            text += "short"

        async def write_too_much() -> None:
            async with library.document("note", "1") as document:
                document.text().insert(0, "x" * (MAX_DOCUMENT_BYTES + 1))

        with pytest.raises(InvalidRequestError):
            await write_too_much()
        async with library.document("note", "1") as document:
            assert str(document.text()) == "short"


async def test_a_document_does_not_grow_with_its_past() -> None:
    async with nodes(1) as linked:
        library = await service(linked[0]).create("Notes")
        async with library.document("note", "1") as document:
            text = document.text()
            for _ in range(500):
                text.insert(0, "some words that are deleted again")
                del text[0:33]
            text += "kept"
        entry = await library.get("note", "1")
        assert entry is not None
        state = document_state(entry.fields["document"])
        assert state is not None
        assert len(state) < 1000


async def test_documents_by_the_local_api() -> None:
    async with nodes(1) as linked:
        await service(linked[0]).create("Notes")
        path = "/v1/sync/libraries/Notes/document"
        place = {"kind": "note", "id": "1"}

        async def edit(**change: object) -> object:
            return await call_route(linked[0], "POST", path, {**place, **change})

        assert await edit(insert={"at": 0, "text": "Hello world"}, set={"title": "Greeting"}) == {
            "text": "Hello world",
            "map": {"title": "Greeting"},
        }
        await edit(erase={"at": 0, "length": 5}, insert={"at": 0, "text": "Goodbye"}, unset=["title"])
        assert await call_route(linked[0], "GET", path + "?kind=note&id=1") == {"text": "Goodbye world", "map": {}}
        with pytest.raises(InvalidRequestError):
            await edit(erase={"at": 10, "length": 100})


def _device(core: object, of: object) -> object:
    return core.remote_devices()[0]  # type: ignore[attr-defined]


async def _reads(document: Document, text: str) -> bool:
    return str(document.text()) == text


async def _has(library: Library) -> bool:
    return await library.get("other", "1") is not None


@given(st.integers(0, 1 << 32))
@settings(max_examples=50, deadline=None)
def test_every_order_of_merging_gives_the_same(seed: int) -> None:
    rng = random.Random(seed)
    base: Doc[object] = Doc()
    base.get("text", type=Text).insert(0, "base")
    values = []
    for number in range(3):
        doc: Doc[object] = Doc()
        doc.apply_update(base.get_update())
        text = doc.get("text", type=Text)
        for _ in range(rng.randrange(5)):
            text.insert(rng.randrange(len(str(text)) + 1), str(number))
        doc.get("map", type=Map)["key"] = number
        values.append(document_value(doc.get_update()))
    merged = merge_documents(values)
    assert merged is not None
    assert is_document(merged)
    assert merge_documents(list(reversed(values))) == merged
    assert merge_documents([*values, merged, document_value(b"garbage")]) == merged


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_without_harm(data: bytes) -> None:
    try:
        check_update(data)
    except SerializationError:
        return
    Doc().apply_update(data)


def test_an_update_that_is_too_long_is_refused() -> None:
    with pytest.raises(SerializationError):
        check_update(bytes(100), max_bytes=99)
