"""The clipboard between nodes in memory, against hostile peers, and between two daemons without a desktop."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import pytest
from sdnet_core.errors import InvalidRequestError, NotFoundError
from sdnet_core.testing import Daemon, LinkedNodes, call_route, check_protocol, record_events

from sdnet_clipboard import ClipboardChanged, ClipboardService
from sdnet_clipboard.messages import MAX_TEXT, Clip
from sdnet_clipboard.plugin import ClipboardPlugin


@pytest.fixture
def sdnet_plugins() -> list[type]:
    """The plugins of the nodes that `sdnet_nodes` makes."""
    return [ClipboardPlugin]


@pytest.mark.anyio
async def test_what_is_copied_here_is_pasted_there(sdnet_nodes: LinkedNodes) -> None:
    a, b = sdnet_nodes
    with pytest.raises(NotFoundError):
        await call_route(b, "GET", "/v1/clipboard/clip")
    async with record_events(b) as events:
        await call_route(a, "POST", "/v1/clipboard/clip", {"text": "smörgås"})
        changed = await events.wait_for(ClipboardChanged)
    assert (changed.origin, changed.size_bytes) == ("node0", 9)
    assert (await call_route(b, "GET", "/v1/clipboard/clip"))["text"] == "smörgås"


@pytest.mark.anyio
async def test_a_device_that_was_away_gets_the_last_clip(sdnet_nodes: LinkedNodes) -> None:
    a, b = sdnet_nodes
    async with record_events(b) as events:
        with sdnet_nodes.link(a, b).down():
            for text in ("one", "two"):
                await a.get_service(ClipboardService).copy(text)
        await events.wait_for(ClipboardChanged)
        with anyio.fail_after(5):
            while (clip := b.get_service(ClipboardService).clip) is None or clip.text != "two":
                await events.wait_for(ClipboardChanged)


@pytest.mark.anyio
async def test_the_later_clip_counts_and_a_fast_clock_does_not(sdnet_nodes: LinkedNodes) -> None:
    clipboard = sdnet_nodes[0].get_service(ClipboardService)
    await clipboard.take(Clip(text="from the future", origin="x", copied_at=9e9))
    await clipboard.take(Clip(text="old", origin="x", copied_at=1.0))
    assert clipboard.clip is not None
    assert clipboard.clip.text == "from the future"
    assert clipboard.clip.copied_at < 9e9


@pytest.mark.anyio
async def test_a_text_that_is_too_long_is_refused(sdnet_nodes: LinkedNodes) -> None:
    with pytest.raises(InvalidRequestError, match="100,001 characters"):
        await sdnet_nodes[0].get_service(ClipboardService).copy("x" * (MAX_TEXT + 1))


@pytest.mark.anyio
async def test_watching_begins_with_what_is_there(sdnet_nodes: LinkedNodes) -> None:
    clipboard = sdnet_nodes[0].get_service(ClipboardService)
    await clipboard.copy("first")
    clips = await call_route(sdnet_nodes[0], "GET", "/v1/clipboard/clip/watch")
    assert (await anext(clips))["text"] == "first"
    await clipboard.copy("second")
    assert (await anext(clips))["text"] == "second"
    await clips.aclose()


@pytest.mark.anyio
async def test_hostile_peers_get_nowhere() -> None:
    await check_protocol(ClipboardPlugin)


def test_two_daemons_share_a_clipboard(sdnet_daemons: Callable[..., tuple[Daemon, ...]]) -> None:
    alice, bob = sdnet_daemons()
    assert bob.run("clip", "paste", check=False).stderr == "sdnet: Nothing has been copied yet.\n"
    alice.run("clip", "copy", input="line one\nline two")
    deadline = time.monotonic() + 20
    while (pasted := bob.run("clip", "paste", check=False)).returncode and time.monotonic() < deadline:
        pass
    assert pasted.stdout == "line one\nline two"
    bob.stop()
    bob.start()
    assert bob.json("clip", "paste")["origin"] == "alice"
