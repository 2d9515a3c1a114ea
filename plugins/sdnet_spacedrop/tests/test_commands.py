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

from sdnet_core import NetworkingCore
from sdnet_core.cli.kit import ApiError, Cli
from sdnet_core.errors import NetworkingError
from sdnet_core.testing import call_route, linked_nodes
from sdnet_spacedrop import finder
from sdnet_spacedrop.cli import drop

from .conftest import PLUGINS, Side, configure, run_pair, side

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

    def put(self, path: str, body: Any = None, /) -> Any:
        return self._call("PUT", path, body)

    def delete(self, path: str, /) -> Any:
        return self._call("DELETE", path)

    @contextmanager
    def stream(self, path: str, /) -> Iterator[Iterator[Any]]:
        yield self._iterate(self._call("GET", path))

    def _iterate(self, values: Any) -> Iterator[Any]:
        while (value := from_thread.run(anext, values, None)) is not None:
            yield json.loads(msgspec.json.encode(value))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            return from_thread.run(call_route, self._core, method, f"/v1{path}", body)
        except NetworkingError as error:
            raise ApiError(error.detail, code=error.code, exit_code=error.exit_code) from error


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

    async def run(side: Side, *arguments: str, say: str = "") -> tuple[int, str, str]:
        if say:
            monkeypatch.setattr(click, "confirm", lambda text, **options: echo(text, err=True) or say == "y")
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
        assert "completed" in (await run(pair.sender, "history"))[1]
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


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
async def test_a_drop_to_a_device_nearby(
    run: Run, home: Path, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    monkeypatch.setattr(finder, "LOOK_S", 0.1)
    configure(home, "node1", "")
    photo, done = make_file(), list[tuple[int, str, str]]()
    async with run_pair(home, paired=False) as pair:
        assert (await run(pair.sender, "nearby"))[1] == ""
        assert "paired" in (await run(pair.receiver, "visibility"))[1]
        shown = (await run(pair.receiver, "visibility", "everyone", "--for", "10m"))[1]
        assert "Until" in shown
        assert "then: paired" in shown
        assert "node1" in (await run(pair.sender, "nearby"))[1]
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                done.append(await run(pair.sender, "send", "--to", "node1", "--nearby", str(photo), say=answer))

            tasks.start_soon(send)
            (offer,) = await pair.receiver.offered()
            if answer == "y":
                await pair.receiver.until(offer, "asking")
                out = (await run(pair.receiver, "pending"))[1]
                assert all(text in out for text in (offer.check, "node0 (not paired)", "photo.jpg"))
                assert (await run(pair.receiver, "accept", offer.id))[0] == 0
        ended, _, said = done[0]
        assert offer.check in said
        assert "not paired" in said
        assert ended == code
        assert bool(pair.receiver.received()) == (answer == "y")


async def test_a_drop_nearby_in_steps(
    run: Run, home: Path, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "LOOK_S", 0.1)
    configure(home, "node1", 'visibility = "everyone"')
    async with run_pair(home, paired=False) as pair:
        code, out, _ = await run(
            pair.sender, "send", "--to", "node1", "--nearby", "--detach", "--json", str(make_file())
        )
        sent = json.loads(out)
        assert (code, sent["state"], sent["device_id"]) == (0, "comparing", None)
        (offer,) = json.loads((await run(pair.receiver, "pending", "--json"))[1])
        assert offer["check"] == sent["check"]
        assert "not told yet" in (await run(pair.receiver, "pending"))[1]
        assert (await run(pair.receiver, "accept", offer["id"]))[0] == 1
        assert (await run(pair.sender, "confirm", sent["id"][:8]))[0] == 0
        await pair.receiver.until(sent["id"], "asking")
        assert (await run(pair.receiver, "accept", offer["id"][:8]))[0] == 0
        assert (await run(pair.sender, "confirm", sent["id"][:8]))[0] == 1
        assert list(pair.receiver.received()) == ["photo.jpg"]


async def test_to_several_each_gets_its_result(run: Run, home: Path, make_file: MakeFile) -> None:
    photo, done = make_file(), list[tuple[int, str, str]]()
    async with linked_nodes(3, plugins=PLUGINS, home=home) as nodes:
        anna, ben, carol = (side(node, nodes) for node in nodes)

        async def send(*whom: str) -> None:
            done.append(await run(anna, "send", str(photo), *whom))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, "--all")
            for receiver in (ben, carol):
                (offer,) = await receiver.offered()
                await receiver.drops.accept(offer.id)
        assert (done[-1][0], "All 2 have received it." in done[-1][1]) == (0, True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, "--to", "node1", "--to", "node2", "--json")
            (offer,) = await ben.offered()
            await ben.drops.accept(offer.id)
            (offer,) = await carol.offered()
            await carol.drops.reject(offer.id, "Not now.")
        code, out, said = done[-1]
        assert (code, {d["device_name"]: d["state"] for d in json.loads(out)}) == (
            4, {"node1": "completed", "node2": "rejected"},
        )  # fmt: skip
        assert "1 of 2" in said
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, "--to", "node1", "--to", "node2")
            (offer,) = await ben.offered()
            await ben.drops.accept(offer.id)
            (offer,) = await carol.offered()
            await carol.drops.reject(offer.id, "Not now.")
        assert "node1: received" in done[-1][2]
        assert "node2: node2 rejected it: Not now." in done[-1][2]
        before = len(anna.drops.drops())
        assert (await run(anna, "send", str(photo), "--to", "node1", "--to", "nobody"))[0] == 1
        assert len(anna.drops.drops()) == before  # one that nobody fits, and nothing was begun


async def test_policies_are_shown_and_set_for_a_device(run: Run, home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        assert "by default" in (await run(pair.receiver, "policy"))[1]
        assert "for this device" in (await run(pair.receiver, "policy", "node0", "accept-trusted"))[1]
        assert (await run(pair.sender, "send", str(make_file()), "--to", "node1"))[0] == 0
        assert list(pair.receiver.received()) == ["photo.jpg"]
        await run(pair.receiver, "policy", "node0", "never")
        code, _, said = await run(pair.sender, "send", str(make_file()), "--to", "node1")
        assert (code, "takes no drops" in said) == (4, True)
    async with run_pair(home) as pair:  # over a restart
        shown = json.loads((await run(pair.receiver, "policy", "node0", "--json"))[1])
        assert (shown["policy"], shown["own"]) == ("never", True)
        await run(pair.receiver, "policy", "node0", "default")
        assert json.loads((await run(pair.receiver, "policy", "--json"))[1])[0]["policy"] == "ask"
        assert (await run(pair.receiver, "policy", "nobody", "never"))[0] == 1


async def test_the_history_is_cleared(run: Run, home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        for _ in range(3):
            drop = await pair.send(make_file())
            (offer,) = await pair.receiver.offered()
            await pair.receiver.drops.reject(offer.id)
            await pair.sender.until(drop, "rejected")
        waiting = await pair.send(make_file())
        assert "2" not in (await run(pair.sender, "history", "--forget", drop.id))[2]
        assert len(json.loads((await run(pair.sender, "history", "--json"))[1])) == 2
        assert (await run(pair.sender, "history", "--forget", waiting.id))[0] == 1
        assert "Forgotten: 2." in (await run(pair.sender, "history", "--clear"))[2]
        assert (await run(pair.sender, "history"))[1] == ""
        assert len(pair.sender.drops.drops()) == 1
    async with run_pair(home) as pair:
        assert pair.sender.drops.history() == []
        assert len(pair.receiver.drops.history()) == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["send"], 2),
        (["send", "/tmp"], 2),
        (["visibility", "some"], 2),
        (["visibility", "--for", "9m"], 2),
        (["visibility", "off", "--for", "soon"], 2),
        (["history", "--clear", "--forget", "x"], 2),
        (["send", "/missing", "--to", "node1"], 2),
        (["accept", "zzz"], 1),
        (["reject", "zzz"], 1),
    ],
)
async def test_wrong_use_is_told(run: Run, home: Path, arguments: list[str], code: int) -> None:
    async with run_pair(home) as pair:
        assert (await run(pair.sender, *arguments))[0] == code
        assert (await run(pair.sender, "pending"))[:2] == (0, "")


async def test_a_device_that_is_not_paired_is_told(run: Run, home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        code, _, said = await run(pair.sender, "send", "--to", "nobody", str(make_file()))
        assert (code, "nobody" in said) == (1, True)
