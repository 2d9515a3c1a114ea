"""The commands, run against the routes of real nodes; only HTTP is left out in between."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
import pytest

from sdnet_core import ApiRequest, NetworkingCore
from sdnet_core.cli.kit import Cli
from sdnet_core.errors import InvalidRequestError, NotFoundError
from sdnet_sync.cli import sync

from .nodes import eventually, in_step, nodes, service, shared

pytestmark = pytest.mark.anyio


class RouteClient:
    """Calls a node's routes from a worker thread, with JSON in between as over HTTP."""

    def __init__(self, core: NetworkingCore) -> None:
        self._routes = {(route.method, f"/{name}{route.path}"): route for name, route in core.routes()}

    def get(self, path: str, /, **query: Any) -> Any:
        return self._call("GET", path, {key: str(value) for key, value in query.items() if value is not None}, {})

    def post(self, path: str, body: Any = None, /) -> Any:
        return self._call("POST", path, {}, body or {})

    def delete(self, path: str, /) -> Any:
        return self._call("DELETE", path, {}, {})

    @contextmanager
    def stream(self, path: str, /, **query: Any) -> Iterator[Iterator[Any]]:
        events = self._call("GET", path, {k: v for k, v in query.items() if v is not None}, {}, plain=False)

        def receive() -> Iterator[Any]:
            while True:
                try:
                    yield _plain(anyio.from_thread.run(anext, events))
                except StopAsyncIteration:
                    return

        try:
            yield receive()
        finally:
            anyio.from_thread.run(events.aclose)

    def _call(self, method: str, path: str, query: dict[str, str], body: Any, *, plain: bool = True) -> Any:
        for (known, template), route in self._routes.items():
            pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template))
            if known == method and (found := re.fullmatch(pattern, path)):
                request = ApiRequest(path=found.groupdict(), query=query, body=json.loads(json.dumps(body)))
                answer = anyio.from_thread.run(route.endpoint, request)
                return _plain(answer) if plain else answer
        raise AssertionError(f"no route for {method} {path}")


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


class LinkedCli(Cli):
    def __init__(self, core: NetworkingCore) -> None:
        super().__init__()
        self.__dict__["client"] = RouteClient(core)


async def run(core: NetworkingCore, *words: str) -> Any:
    """Run ``sdnet sync …``."""
    return await anyio.to_thread.run_sync(partial(sync.main, list(words), obj=LinkedCli(core), standalone_mode=False))


async def test_the_life_of_a_library(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def shown() -> str:
        return capsys.readouterr().out

    def parsed() -> Any:
        return json.loads(capsys.readouterr().out)

    async with nodes(2) as linked:
        a, b = linked
        await run(a, "create", "Recipes")
        assert shown().startswith("Library Recipes made, ")
        await run(a, "invite", "Recipes", "node1", "--role", "owner")
        assert shown() == "node1 is asked.\n"
        await run(b, "list")
        assert "node0 invites this device to Recipes as owner." in shown()
        await run(b, "join", "recipes", "--json")
        assert parsed()["state"] in ("joining", "active")
        [la], [lb] = service(a).libraries(), service(b).libraries()
        await eventually(lambda: in_step(la, lb))

        await run(a, "put", "Recipes", "recipe", "pancakes", "title=Pancakes", "eggs=3", 'tags=["sweet"]')
        await eventually(lambda: in_step(la, lb))
        shown()
        await run(b, "get", "Rec", "recipe", "pancakes")
        assert shown() == 'eggs: 3\ntags: ["sweet"]\ntitle: Pancakes\n'
        await run(b, "search", "Recipes", "SWEET", "--json")
        assert [entry["id"] for entry in parsed()] == ["pancakes"]
        await run(b, "status", "Recipes", "--json")
        status = parsed()
        assert (status["entries"], status["role"], status["conflicts"]) == (1, "owner", 0)
        assert {(m["name"], m["connected"], m["this_device"]) for m in status["members"]} == {
            ("node0", True, False),
            ("node1", False, True),
        }
        await run(b, "status")
        assert "node0 (owner): in step" in shown()
        await run(a, "verify", "Recipes", "--json")
        [verification] = parsed()
        assert verification["equal"]
        assert verification["exchanged_bytes"] < 64 << 10

        linked.cut(a, b)
        await run(a, "put", "Recipes", "recipe", "pancakes", "eggs=4")
        await run(b, "put", "Recipes", "recipe", "pancakes", "eggs=5")
        linked.heal(a, b)
        await eventually(lambda: in_step(la, lb))
        shown()
        await run(a, "conflicts", "Recipes")
        assert "recipe pancakes eggs (keep-both)\n  0: 4" in shown()
        await run(a, "resolve", "Recipes", "recipe", "pancakes", "--choose", "0")
        await eventually(lambda: in_step(la, lb))
        shown()
        await run(b, "conflicts", "Recipes", "--json")
        assert parsed() == []
        await run(b, "get", "Recipes", "recipe", "pancakes", "--json")
        assert parsed()["fields"]["eggs"] == 4

        file = tmp_path / "recipes.jsonl"
        await run(a, "export", "Recipes", str(file))
        await run(a, "delete", "Recipes", "recipe", "pancakes")
        with pytest.raises(NotFoundError):
            await run(a, "get", "Recipes", "recipe", "pancakes")
        await eventually(lambda: in_step(la, lb))  # the import is to come after the deletion, not beside it
        file.write_bytes(file.read_bytes() + b'{"kind": "blob", "id": "1", "fields": {"data": {"$bytes": "ff00"}}}\n')
        await run(b, "import", "Recipes", str(file))
        await eventually(lambda: in_step(la, lb))
        entry = await la.get("blob", "1")
        assert entry is not None
        assert entry.fields == {"data": b"\xff\x00"}
        entry = await la.get("recipe", "pancakes")
        assert entry is not None
        assert entry.fields == {"title": "Pancakes", "eggs": 4, "tags": ["sweet"]}

        await run(a, "pause", "Recipes")
        shown()
        await run(a, "status")
        assert shown().startswith("Recipes (paused, owner): 2 entries")
        await run(a, "resume", "Recipes")
        await run(a, "set-role", "Recipes", "node1", "reader")
        await run(a, "remove", "Recipes", "node1")
        await eventually(lambda: _state(b, lb, "removed"))
        await run(b, "leave", "Recipes", "--delete")
        assert service(b).libraries() == []
        with pytest.raises(NotFoundError):
            await run(b, "status", "Recipes")
        with pytest.raises(InvalidRequestError):
            await run(a, "put", "Recipes", "$strategy", "x", "a=1")


async def _state(core: NetworkingCore, library: Any, state: str) -> bool:
    return service(core).record(library.library).state == state


async def test_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def shown() -> str:
        return capsys.readouterr().out

    def parsed() -> Any:
        return json.loads(capsys.readouterr().out)

    films, photos, copy = tmp_path / "films", tmp_path / "photos", tmp_path / "copy"
    for path in (films / "old" / "nosferatu.mkv", films / "metropolis.mkv", photos / "beach.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode() * 20_000)
    async with nodes(2) as linked:
        a, b = linked
        [la, lb] = await shared(a, b)
        await run(a, "add-location", "Recipes", str(films))
        assert shown() == f"films (index) is {films}: 2 files, 527.3 KiB.\n"
        await run(a, "mirror", "Recipes", str(photos), "--json")
        assert parsed()["folder"]["state"] == "ready"
        await eventually(lambda: in_step(la, lb))

        await run(b, "ls", "Recipes")
        assert [line.split()[0] for line in shown().splitlines()] == ["NAME", "films/", "photos/"]
        await run(b, "ls", "Recipes", "films")
        assert [line.split()[0] for line in shown().splitlines()] == ["NAME", "old/", "metropolis.mkv"]
        await run(b, "ls", "Recipes", "films/old", "--json")
        assert [(item["name"], item["size"]) for item in parsed()] == [("nosferatu.mkv", 260_000)]
        await run(b, "search", "METROPOLIS", "--json")
        [found] = parsed()
        assert (found["library"], found["type"], found["path"], found["where"]) == (
            "Recipes",
            "file",
            "films/metropolis.mkv",
            "node0",
        )

        await run(b, "get", "Recipes", "films/old/nosferatu.mkv", "--to", str(tmp_path / "got"), "--json")
        assert parsed()["paths"] == [str(tmp_path / "got" / "nosferatu.mkv")]
        await run(b, "get", "Recipes", "films", "--to", str(tmp_path / "got"))
        assert shown().startswith("Got 2 files in ")
        got = {str(p.relative_to(tmp_path / "got")) for p in (tmp_path / "got").rglob("*") if p.is_file()}
        assert got == {"nosferatu.mkv", "films/old/nosferatu.mkv", "films/metropolis.mkv"}
        with pytest.raises(NotFoundError):
            await run(b, "get", "Recipes", "films/none.mkv", "--to", str(tmp_path / "got"))

        await run(b, "mirror", "Recipes", str(copy))
        assert shown() == f"photos (mirror) is {copy}: 1 file, 175.8 KiB.\n"
        assert (copy / "beach.jpg").read_bytes() == (photos / "beach.jpg").read_bytes()
        (photos / "beach.jpg").unlink()
        await eventually(lambda: _gone(copy / "beach.jpg"))
        await run(b, "trash", "Recipes", "photos", "--json")
        [item] = parsed()
        await run(b, "restore", "Recipes", "photos", str(item["number"]))
        assert shown() == "Restored: beach.jpg\n"
        await eventually(lambda: _there(photos / "beach.jpg"))
        await run(b, "locations", "Recipes")
        assert "photos (mirror, " in shown()
        await run(b, "remove-location", "Recipes", "photos")
        await run(a, "remove-location", "Recipes", "films")
        await eventually(lambda: in_step(la, lb))
        shown()
        await run(b, "ls", "Recipes", "--json")
        assert [item["name"] for item in parsed()] == ["photos"]
        assert (copy / "beach.jpg").exists()
        with pytest.raises(NotFoundError):
            await run(b, "ls", "Recipes", "films")


async def _gone(path: Path) -> bool:
    return path.name not in os.listdir(path.parent)


async def _there(path: Path) -> bool:
    return path.name in os.listdir(path.parent)
