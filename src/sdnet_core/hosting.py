"""A node in a thread of its own: for scripts and notebooks, and what `bridge` builds on; events for a host's bus."""

from __future__ import annotations

import concurrent.futures
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar, cast

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from .config import Config
from .core import NetworkingCore
from .errors import NetworkTimeoutError, NotRunningError
from .events import NetworkEvent, Subscription

__all__ = ["EventBridge", "EventSource", "NodeThread", "ServiceProxy", "SyncCore", "subscribe"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S")


class EventSource(Protocol):
    """What an `EventBridge` listens to: a `NetworkingCore` or an `AsyncioCore`."""

    def subscribe_events(self, kinds: Iterable[str] | None = None, /) -> Any:
        """An async context manager that gives an async iterator of events."""


class _Queue(Protocol):
    def put_nowait(self, item: NetworkEvent, /) -> Any: ...


class EventBridge:
    """Brings a node's events to a host's own event bus for as long as its block runs.

    Example::

        async with NetworkingCore(config) as core, EventBridge(core, bus.publish):
            ...

    :param core: the node.
    :param sink: a function, plain or async, that is called with each event, one after the other; or a queue with
        ``put_nowait``. What it raises (a full queue too) is logged, and the next event comes. A slow one makes the node
        drop its oldest events and say so with an `EventsDropped`; the node itself never waits.
    :param kinds: only these kinds; all when None.
    """

    def __init__(
        self,
        core: EventSource,
        sink: Callable[[NetworkEvent], object] | _Queue,
        *,
        kinds: Iterable[str] | None = None,
    ) -> None:
        self._core = core
        put = getattr(sink, "put_nowait", None)
        self._take: Callable[[NetworkEvent], object] = put if put is not None else cast("Callable[..., object]", sink)
        self._kinds = None if kinds is None else frozenset(kinds)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            events = await stack.enter_async_context(self._core.subscribe_events(self._kinds))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._pump, events)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        return await self._stack.__aexit__(*exc_info)

    async def _pump(self, events: AsyncIterator[NetworkEvent]) -> None:
        async for event in events:
            try:
                result = self._take(event)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logger.exception("the host's event bus did not take %s", event.kind)


class _Call(Generic[T]):
    """One call into the node's thread."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._function = partial(function, *args, **kwargs)
        # Made in the node's thread: whoever calls may run another event loop.
        self._scope: anyio.CancelScope | None = None
        self._cancelled = False
        self.future: concurrent.futures.Future[T] = concurrent.futures.Future()

    async def run(self) -> None:
        """Do it; in the node's thread."""
        try:
            with anyio.CancelScope() as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                result = self._function()
                if inspect.isawaitable(result):
                    result = await result
                self.future.set_result(result)
        except Exception as error:
            self.future.set_exception(error)
        finally:
            if not self.future.done():
                self.future.set_exception(_stopped())

    def cancel(self) -> None:
        """End it early; in the node's thread."""
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()


def _stopped() -> NotRunningError:
    return NotRunningError("The node has stopped.")


class NodeThread:
    """A thread with trio and a node in it.

    :param make: makes the node, in that thread.
    """

    def __init__(self, make: Callable[[], NetworkingCore]) -> None:
        self._make = make
        self._thread = threading.Thread(target=self._run, name="sdnet", daemon=True)
        self._lock = threading.Lock()
        self._token: Any = None
        self._tasks: TaskGroup | None = None
        self._stop: anyio.Event | None = None
        self._stop_wanted = False
        self._calls: set[_Call[Any]] = set()
        self.started: concurrent.futures.Future[NetworkingCore] = concurrent.futures.Future()
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()

    def start(self) -> None:
        """Start the thread; `started` is done when the node is up or has failed, `ended` when all has ended."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the node to stop; does not wait."""
        with self._lock:
            self._stop_wanted = True
            if self._token is not None and self._stop is not None:
                self._token.run_sync_soon(self._stop.set)

    def join(self) -> None:
        """Wait for the thread to end; once `ended` is done that takes no time to speak of."""
        self._thread.join()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> _Call[Any]:
        """Begin a call in the node's task group; its future gives the result.

        :raises NotRunningError: the node has stopped, or has not started.
        """
        call: _Call[Any] = _Call(function, *args, **kwargs)
        with self._lock:
            if self._token is None or self._tasks is None or self._stop_wanted:
                raise _stopped()
            self._calls.add(call)
            self._token.run_sync_soon(self._begin, call)
        call.future.add_done_callback(lambda _: self._calls.discard(call))
        return call

    def cancel(self, call: _Call[Any]) -> None:
        """End a call early; its future is done soon."""
        with self._lock:
            if self._token is not None:
                self._token.run_sync_soon(call.cancel)

    def _begin(self, call: _Call[Any]) -> None:
        if self._tasks is None:
            call.future.set_exception(_stopped())
        else:
            self._tasks.start_soon(call.run)

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend="trio")
        except BaseException as error:
            cause = _single(error)
            if self.started.done():
                self._finish(self.ended, cause)
            else:
                self.started.set_exception(cause)
                self._finish(self.ended)
        else:
            self._finish(self.ended)

    def _finish(self, ended: concurrent.futures.Future[None], error: BaseException | None = None) -> None:
        """Nothing runs here any more: what still waits is told."""
        with self._lock:
            waiting, self._calls = self._calls, set()
        for call in waiting:
            if not call.future.done():
                call.future.set_exception(_stopped())
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    async def _main(self) -> None:
        stop = self._stop = anyio.Event()
        with self._lock:
            self._token = anyio.lowlevel.current_token().native_token
            if self._stop_wanted:
                stop.set()
        try:
            async with anyio.create_task_group() as watching:
                with anyio.CancelScope() as life:
                    watching.start_soon(self._give_up_starting, stop, life)
                    async with self._make() as node, anyio.create_task_group() as tasks:
                        self._tasks = tasks
                        self.started.set_result(node)
                        await stop.wait()
                        tasks.cancel_scope.cancel()
                watching.cancel_scope.cancel()
        finally:
            self._tasks = None
            with self._lock:
                self._token = None
        if not self.started.done():
            raise _stopped()

    async def _give_up_starting(self, stop: anyio.Event, life: anyio.CancelScope) -> None:
        await stop.wait()
        if not self.started.done():
            life.cancel()


def _single(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def subscribe(core: NetworkingCore, kinds: frozenset[str] | None) -> Subscription:
    """Subscribe to a node's events, in its thread."""
    return core.subscribe_events(kinds)


class ServiceProxy:
    """A plugin's service, whose methods are called in the node's thread."""

    def __init__(self, call: Callable[..., Any], service: Any) -> None:
        self._call = call
        self._service = service

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._service, name)
        return partial(self._call, value) if callable(value) else value


class SyncCore:
    """A node for scripts and notebooks: `NetworkingCore` in a thread of its own, its methods blocking.

    Example::

        with SyncCore(load_config("my-script")) as core:
            laptop = core.find_device("laptop")
            print(core.ping(laptop.device_id))

    All of `NetworkingCore`'s methods are there, with the same names and arguments. Ctrl-C cancels the call it hits.

    :param config: the node's settings.
    :param options: whatever else `NetworkingCore` takes.
    """

    def __init__(self, config: Config, **options: Any) -> None:
        self._node = NodeThread(partial(NetworkingCore, config, **options))
        self._core: NetworkingCore | None = None

    def __enter__(self) -> Self:
        self._node.start()
        try:
            self._core = self._node.started.result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._node.stop()
        concurrent.futures.wait([self._node.ended])
        self._node.join()
        self._node.ended.result()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call any function, plain or async, in the node's thread, and wait for what it returns."""
        call = self._node.call(function, *args, **kwargs)
        try:
            return call.future.result()
        except KeyboardInterrupt:
            self._node.cancel(call)
            concurrent.futures.wait([call.future])
            raise

    def get_service(self, type_: type[S]) -> S:
        """A plugin's Python interface; its methods block.

        :raises PluginError: no loaded plugin offers it.
        """
        return cast(S, ServiceProxy(self.call, self._running().get_service(type_)))

    def events(self, kinds: Iterable[str] | None = None, *, timeout_s: float | None = None) -> Iterator[NetworkEvent]:
        """What happens from now on; ends when the node stops.

        :param timeout_s: the longest wait for one event; None for as long as it takes.
        :raises NetworkTimeoutError: nothing happened for so long.
        """
        subscription = self.call(subscribe, self._running(), None if kinds is None else frozenset(kinds))
        return self._events(subscription, timeout_s)

    def _events(self, subscription: Subscription, timeout_s: float | None) -> Iterator[NetworkEvent]:
        try:
            while True:
                yield self.call(_receive, subscription, timeout_s)
        except (anyio.EndOfStream, NotRunningError):
            return
        finally:
            subscription.close()

    def _running(self) -> NetworkingCore:
        if self._core is None:
            raise NotRunningError("The node has not started: use it with `with`.")
        return self._core

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._running(), name)
        return partial(self.call, value) if callable(value) else value


async def _receive(subscription: Subscription, timeout_s: float | None) -> NetworkEvent:
    try:
        with anyio.fail_after(timeout_s):
            return await subscription.receive()
    except TimeoutError:
        raise NetworkTimeoutError(f"Nothing happened for {timeout_s:g} s.") from None
