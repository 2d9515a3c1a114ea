"""What the tests of the core and of the plugins share."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest

# A loaded machine must not fail a property test by its clock, and CI must not fail by chance.
hypothesis.settings.register_profile("dev", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Started in the background of a shell, a process ignores Ctrl-C, and so do those it starts: tests of Ctrl-C would hang.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TRIO_ONLY = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each `@pytest.mark.anyio` test on both event loops."""
    backend: str = request.param
    return backend


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Run tests marked `libp2p`, by themselves, their class or their module, on trio only."""
    if not collector.istestfunction(obj, name):
        return
    own = {mark.name for mark in getattr(obj, "pytestmark", [])}
    if "libp2p" in own or collector.get_closest_marker("libp2p"):
        TRIO_ONLY(obj)
