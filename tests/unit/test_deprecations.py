"""What is deprecated goes on working for two minor versions, and says what to use instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdnet_core import hookimpl
from sdnet_core.deprecations import SdnetDeprecationWarning, deprecated
from sdnet_core.hookspecs import SdnetSpecs, hookspec
from sdnet_core.plugins import PluginState, given_plugins


class Thing:
    @deprecated(since="0.1", gone_in="0.3", instead="Thing.new")
    def old(self, x: int) -> int:
        """Double."""
        return 2 * x

    @deprecated(since="0.9", gone_in="1.0", instead="Thing.new_later")
    async def old_later(self, x: int) -> int:
        return 2 * x


def test_a_call_works_and_warns_at_the_callers_line() -> None:
    with pytest.warns(SdnetDeprecationWarning) as caught:
        assert Thing().old(2) == 4
    assert str(caught[0].message) == "Thing.old is deprecated since sdnet 0.1 and gone in 0.3: use Thing.new."
    assert Path(caught[0].filename).name == Path(__file__).name
    assert Thing.old.__doc__ == "Double."


@pytest.mark.anyio
async def test_an_async_one_too() -> None:
    with pytest.warns(SdnetDeprecationWarning, match=r"gone in 1\.0"):
        assert await Thing().old_later(2) == 4


@pytest.mark.parametrize("gone_in", ["0.1", "0.2"])
def test_less_than_two_minor_versions_are_not_accepted(gone_in: str) -> None:
    with pytest.raises(ValueError, match="kept for 2 minor versions"):
        deprecated(since="0.1", gone_in=gone_in, instead="nothing")


def test_a_plugin_that_implements_a_deprecated_hook_is_warned_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def sdnet_event(self: object, ctx: object, event: object) -> None: ...

    marked = hookspec(sdnet_event, warn_on_impl=SdnetDeprecationWarning("sdnet_event goes away"))
    monkeypatch.setattr(SdnetSpecs, "sdnet_event", marked)

    class Plugin:
        @hookimpl
        def sdnet_event(self, event: object) -> None: ...

    with pytest.warns(SdnetDeprecationWarning, match="sdnet_event goes away"):
        (record,) = given_plugins([Plugin]).records
    assert record.state is PluginState.LOADED
