"""The commands and the routes of the local API, against running nodes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import click
import msgspec
import pytest
from anyio import from_thread, to_thread

from sdnet_core import ApiRequest, NetworkingCore
from sdnet_core.cli.kit import ApiError, Cli
from sdnet_core.errors import NetworkingError
from sdnet_spacedrop.cli import drop

from .conftest import Side, run_pair

pytestmark = pytest.mark.anyio

MakeFile = Callable[..., Path]


class RouteClient:
    """Calls a node's routes from a worker thread as the local API would, less HTTP."""

    def __init__(self, core: NetworkingCore) -> None:
        self._core = core

    def get(self, path: str, /, **query: Any) -> Any:
        return self._call("GET", path)

    def post(self, path: str, body: Any = None, /) -> Any:
        return self._call("POST", path, body)

    def delete(self, path: str, /) -> Any:
        return self._call("DELETE", path)

    @contextmanager
    def stream(self, path: str, /) -> Iterator[Iterator[Any]]:
        yield self._iterate(self._call("GET", path, plain=False))

    def _iterate(self, values: Any) -> Iterator[Any]:
        while (value := from_thread.run(anext, values, None)) is not None:
            yield _plain(value)

    def _call(self, method: str, path: str, body: Any = None, *, plain: bool = True) -> Any:
        parts = path.removeprefix("/spacedrop").split("/")
        for plugin, route in self._core.routes():
            names = route.path.split("/")
            if plugin == "spacedrop" and route.method == method and len(names) == len(parts):
                values = {n[1:-1]: p for n, p in zip(names, parts, strict=True) if n.startswith("{")}
                if all(n.startswith("{") or n == p for n, p in zip(names, parts, strict=True)):
                    try:
                        answer: Any = from_thread.run(_answer, route.endpoint, ApiRequest(path=values, body=body or {}))
                    except NetworkingError as error:
                        raise ApiError(error.detail, code=error.code, exit_code=error.exit_code) from error
                    return _plain(answer) if plain else answer
        raise AssertionError(f"no route for {method} {path}")


async def _answer(endpoint: Callable[[ApiRequest], Any], request: ApiRequest) -> Any:
    return await endpoint(request)


def _plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


class Said(threading.local):
    """What the command in this thread prints; two commands run at once here."""

    out = ""
    err = ""


Run = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``sdnet drop``; gives exit code, output and what was said on standard error."""
    texts = Said()

    def echo(message: object = "", *, err: bool = False) -> None:
        if err:
            texts.err += f"{message}\n"
        else:
            texts.out += f"{message}\n"

    monkeypatch.setattr(click, "echo", echo)

    def call(cli: Cli, arguments: list[str]) -> tuple[int, str, str]:
        texts.out = texts.err = ""
        code = 0
        try:
            drop.main(arguments, "drop", obj=cli, standalone_mode=False)
        except click.ClickException as error:
            code = error.exit_code
        except NetworkingError as error:
            code = error.exit_code
            texts.err += error.detail
        return code, texts.out, texts.err

    async def run(side: Side, *arguments: str) -> tuple[int, str, str]:
        cli = Cli()
        cli.__dict__["client"] = RouteClient(side.core)
        return await to_thread.run_sync(call, cli, list(arguments))

    return run


async def test_a_drop_from_command_to_command(run: Run, home: Path, make_file: MakeFile, tmp_path: Path) -> None:
    photo, done = make_file(), list[tuple[int, str, str]]()
    async with run_pair(home) as pair:
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                done.append(await run(pair.sender, "send", "--to", "node1", str(photo), "--message", "from the lake"))

            tasks.start_soon(send)
            (offer,) = await pair.receiver.offered()
            code, out, _ = await run(pair.receiver, "pending")
            assert code == 0
            assert all(text in out for text in (offer.id[:8], "node0", "photo.jpg", "from the lake"))
            _, out, _ = await run(pair.receiver, "pending", "--json")
            assert [entry["id"] for entry in json.loads(out)] == [offer.id]
            code, out, said = await run(pair.receiver, "accept", offer.id[:8], "--to", str(tmp_path / "in"))
            assert (code, str(tmp_path / "in" / "photo.jpg") in out) == (0, True), said
        code, out, said = done[0]
        assert (code, "node1 has received photo.jpg" in out) == (0, True)
        assert "Waiting for node1 to accept." in said
        assert (tmp_path / "in" / "photo.jpg").read_bytes() == photo.read_bytes()
        _, out, _ = await run(pair.receiver, "inbox", "--json")
        assert json.loads(out)[0]["paths"] == [str(tmp_path / "in" / "photo.jpg")]
        assert "photo.jpg" in (await run(pair.receiver, "inbox"))[1]
        assert "completed" in (await run(pair.sender, "inbox", "--all"))[1]
        assert (await run(pair.sender, "inbox"))[1] == ""


async def test_a_rejection_ends_with_4(run: Run, home: Path, make_file: MakeFile) -> None:
    done = list[tuple[int, str, str]]()
    async with run_pair(home) as pair:
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                done.append(await run(pair.sender, "send", "--to", "node1", str(make_file()), "--json"))

            tasks.start_soon(send)
            (offer,) = await pair.receiver.offered()
            code, _, said = await run(pair.receiver, "reject", offer.id, "--reason", "Not now.")
            assert (code, "Rejected photo.jpg" in said) == (0, True)
        code, out, said = done[0]
        assert (code, json.loads(out)["state"]) == (4, "rejected")
        assert "node1 rejected it: Not now." in said
        assert (await run(pair.receiver, "accept", offer.id))[0] == 1


async def test_what_was_cancelled_at_the_other_side_ends_with_4(run: Run, home: Path, make_file: MakeFile) -> None:
    done = list[tuple[int, str, str]]()
    async with run_pair(home) as pair:
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                film = make_file("film.mkv", 64_000_000)
                done.append(await run(pair.sender, "send", "--to", "node1", str(film)))

            tasks.start_soon(send)
            (offer,) = await pair.receiver.offered()
            assert (await run(pair.receiver, "accept", "--detach", "--json", offer.id))[0] == 0
            assert (await run(pair.receiver, "cancel", offer.id))[0] == 0
        assert done[0][0] == 4
        assert pair.receiver.received() == {}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["send"], 2), (["send", "/missing", "--to", "node1"], 2), (["accept", "zzz"], 1), (["reject", "zzz"], 1)],
)
async def test_wrong_use_is_told(run: Run, home: Path, arguments: list[str], code: int) -> None:
    async with run_pair(home) as pair:
        assert (await run(pair.sender, *arguments))[0] == code
        assert (await run(pair.sender, "pending"))[:2] == (0, "")


async def test_a_device_that_is_not_paired_is_told(run: Run, home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        code, _, said = await run(pair.sender, "send", "--to", "nobody", str(make_file()))
        assert (code, "nobody" in said) == (1, True)
