"""Attacks a plugin's protocols as hostile peers would, and checks that the node shrugs it off."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

import anyio

from ..clock import Clock, Runner, SystemRandomness, run_in_thread
from ..devices.trust import Access
from ..errors import NetworkingError, PluginError
from ..events import PluginFailed, Subscription
from ..plugins import PluginState
from ..protocols.handler import PeerStream, ProtocolSpec
from ..wire import encode_frame, encode_varint
from ..wording import format_count
from .nodes import LinkedNodes, linked_nodes, pair

if TYPE_CHECKING:
    from ..core import NetworkingCore
    from ..swarm.memory import MemorySwarm

__all__ = ["Attack", "Attempt", "ProtocolReport", "check_protocol"]

Works = Callable[["NetworkingCore", uuid.UUID], Awaitable[object]]

_SLACK_S = 5.0
"""How much longer than allowed something may take, on a machine that is busy."""
_MOST_STREAMS = 140


class Attack(StrEnum):
    """What is tried on each protocol."""

    EARLY_END = "early end"
    """Ends the stream without a word."""
    GARBAGE = "garbage"
    """Sends 8 KiB of random bytes and ends."""
    NONSENSE = "nonsense message"
    """Sends a well-formed frame whose content means nothing, and ends."""
    OVERSIZE = "oversize message"
    """Announces a message one byte longer than allowed, and begins to send it."""
    HUGE_LENGTH = "huge length"
    """Announces a message of 2⁶² bytes."""
    HALF_FRAME = "half frame"
    """Ends in the middle of a message."""
    RESET = "half frame and reset"
    """Breaks off in the middle of a message."""
    SILENCE = "silence"
    """Opens a stream and does nothing."""
    HALF_AND_SILENCE = "half frame and silence"
    """Stops in the middle of a message and does nothing more."""
    FLOOD = "more streams than allowed"
    """Opens more streams than one peer may have, all at once."""


_WAITING = frozenset({Attack.SILENCE, Attack.HALF_AND_SILENCE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attack and what the node did.

    :param by: ``paired device`` or ``stranger``.
    :param outcome: what the attacker saw: ``refused``, ``ended`` or ``reset``, and what was answered before that.
    :param problem: what is wrong with that; empty if it is right.
    """

    protocol_id: str
    attack: Attack
    by: str
    outcome: str
    problem: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {
            "protocol_id": self.protocol_id,
            "attack": str(self.attack),
            "by": self.by,
            "outcome": self.outcome,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class ProtocolReport:
    """What `check_protocol` found."""

    attempts: tuple[Attempt, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one sentence each."""
        return tuple(f"{a.protocol_id}, {a.attack} by a {a.by}: {a.problem}" for a in self.attempts if a.problem)

    def __str__(self) -> str:
        return "\n".join(
            f"{'FAIL' if a.problem else 'ok  '}  {a.protocol_id}  {a.by:13}  {a.attack}: {a.outcome}"
            + (f" — {a.problem}" if a.problem else "")
            for a in self.attempts
        )


async def check_protocol(
    plugin: Any,
    protocol_name: str | None = None,
    *,
    plugins: Sequence[Any] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    works: Works | None = None,
    silence_s: float = 0.3,
    clock: Clock | None = None,
    runner: Runner = run_in_thread,
) -> ProtocolReport:
    """Attack a plugin's protocols, as a paired device and as a stranger, and check that its node still serves.

    After each attack the node must answer a ping, the plugin must be loaded and have raised nothing, and every
    handler of the attacker's streams must have ended.

    Example::

        async def test_hostile_peers():
            await check_protocol(EchoPlugin, works=lambda node, device_id: node.request(device_id, "echo", b"hi"))

    :param plugin: its class.
    :param protocol_name: only this protocol; all the plugin's when None.
    :param plugins: further plugins that it needs.
    :param settings: the nodes' configuration by section.
    :param works: a conversation that must succeed, tried from the paired device after each attack.
    :param silence_s: the protocols' idle time-outs are shortened to this.
    :param clock: the nodes' clock; with ``runner``, for virtual time.
    :returns: what was tried and what the node did.
    :raises AssertionError: something is wrong; the message is the whole report.
    :raises PluginError: the plugin does not load, or has no such protocol.
    """
    attempts: list[Attempt] = []
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(
            linked_nodes(3, plugins=[plugin, *plugins], paired=False, settings=settings, clock=clock, runner=runner)
        )
        target = nodes[0]
        specs = _shorten(target, plugin, protocol_name, silence_s)
        await pair(nodes[1], target, SystemRandomness())
        failures = await stack.enter_async_context(target.events.subscribe([PluginFailed.kind], buffer=1000))
        for spec in specs:
            check = _Check(nodes, spec, failures, works, silence_s)
            for stranger in (False, True):
                attempts.extend([await check.attempt(attack, stranger=stranger) for attack in Attack])
    report = ProtocolReport(tuple(attempts))
    if report.problems:
        raise AssertionError(f"The node did not shrug off every attack:\n{report}")
    return report


def _shorten(target: NetworkingCore, plugin: Any, protocol_name: str | None, silence_s: float) -> list[ProtocolSpec]:
    """Find the protocols to attack, and give them short idle time-outs."""
    record = next(r for r in target.plugin_records() if r.plugin is plugin or type(r.plugin) is plugin)
    if record.state is not PluginState.LOADED:
        raise PluginError(f"Plugin {record.name} {record.reason}.")
    specs = []
    for registered in target._protocols:
        if registered.plugin != record.name or protocol_name not in (None, registered.spec.protocol_name):
            continue
        spec = replace(registered.spec, idle_timeout_s=min(registered.spec.idle_timeout_s, silence_s))
        target._protocols._protocols[spec.protocol_id] = replace(registered, spec=spec)
        specs.append(spec)
    if not specs and protocol_name is not None:
        raise PluginError(f"Plugin {record.name} has no protocol {protocol_name!r}.")
    return specs


class _Check:
    """The attacks on one protocol."""

    def __init__(
        self, nodes: LinkedNodes, spec: ProtocolSpec, failures: Subscription, works: Works | None, silence_s: float
    ) -> None:
        self._target, self._paired, self._stranger = nodes
        self._spec = spec
        self._failures = failures
        self._works = works
        self._silence_s = silence_s
        self._random = random.Random(spec.protocol_id)

    async def attempt(self, attack: Attack, *, stranger: bool) -> Attempt:
        """Do one attack and look at the node afterwards."""
        attacker = self._stranger if stranger else self._paired
        problems: list[str] = []
        if stranger:
            # Have the connection first, so that what runs before the attack can be counted.
            await attacker._swarm.dial(self._target.identity.peer_id, self._target.addresses)
        before = self._running(attacker)
        try:
            if attack is Attack.FLOOD:
                outcome = await self._flood(attacker, before, stranger=stranger, problems=problems)
            else:
                outcome = await self._one(attacker, attack, stranger=stranger, problems=problems)
        except NetworkingError as error:
            outcome = f"refused: {error.detail}"
        await self._look_after(attacker, before, problems)
        return Attempt(
            protocol_id=self._spec.protocol_id,
            attack=attack,
            by="stranger" if stranger else "paired device",
            outcome=outcome,
            problem=" ".join(problems),
        )

    async def _one(self, attacker: NetworkingCore, attack: Attack, *, stranger: bool, problems: list[str]) -> str:
        async with self._open(attacker, stranger=stranger) as stream:
            try:
                await self._attack(stream, attack)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the node has ended the stream already; what it said is read below
            if attack is Attack.RESET:
                await stream.reset()
                return "reset by the attacker"
            answered, ending = await self._read_to_end(stream)
            if not ending:
                problems.append(f"It held the stream for more than {self._silence_s + _SLACK_S:g} s.")
            if stranger and self._spec.access is not Access.STRANGER:
                if answered:
                    problems.append(
                        f"It answered {format_count(answered, 'byte')} to somebody who has no business here."
                    )
                return "refused" if not answered else f"answered {format_count(answered, 'byte')}"
            said = format_count(answered, "byte")
            return f"{ending or 'held'}{f' after {said} of answer' if answered else ''}"

    async def _attack(self, stream: PeerStream, attack: Attack) -> None:
        most = self._spec.max_message_bytes
        match attack:
            case Attack.EARLY_END:
                await stream.send_eof()
            case Attack.GARBAGE:
                await stream.send(self._random.randbytes(8192))
                await stream.send_eof()
            case Attack.NONSENSE:
                await stream.send(encode_frame(self._random.randbytes(min(64, most))))
                await stream.send_eof()
            case Attack.OVERSIZE:
                await stream.send(encode_varint(most + 1) + bytes(min(most, 1 << 16)))
            case Attack.HUGE_LENGTH:
                await stream.send(encode_varint(1 << 62) + bytes(1024))
            case Attack.HALF_FRAME:
                await stream.send(encode_varint(min(64, most)) + b"\xa1")
                await stream.send_eof()
            case Attack.RESET | Attack.HALF_AND_SILENCE:
                await stream.send(encode_varint(min(64, most)) + b"\xa1")

    async def _read_to_end(self, stream: PeerStream) -> tuple[int, str]:
        """Read what the node says until it ends the stream.

        :returns: how many bytes that were, and how it ended; empty if it did not.
        """
        answered = 0
        with anyio.move_on_after(self._silence_s + _SLACK_S):
            try:
                while True:
                    answered += len(await stream.receive())
            except anyio.EndOfStream:
                return answered, "ended"
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, NetworkingError):
                return answered, "reset"
        return answered, ""

    async def _flood(self, attacker: NetworkingCore, before: int, *, stranger: bool, problems: list[str]) -> str:
        allowed = self._spec.max_streams_per_peer
        count = min(allowed + 4, _MOST_STREAMS)
        async with AsyncExitStack() as stack:
            for _ in range(count):
                try:
                    await stack.enter_async_context(self._open(attacker, stranger=stranger))
                except NetworkingError:
                    break
            with anyio.move_on_after(_SLACK_S):
                while (held := self._running(attacker) - before) > allowed:  # noqa: ASYNC110 - the swarm tells nobody
                    await anyio.sleep(0.005)
        if held > allowed:
            problems.append(f"It serves {format_count(held, 'stream')} of one peer; the protocol allows {allowed}.")
        return f"{held} of {format_count(count, 'stream')} held"

    @asynccontextmanager
    async def _open(self, attacker: NetworkingCore, *, stranger: bool) -> AsyncIterator[PeerStream]:
        name, version = self._spec.protocol_name, self._spec.version
        if stranger:
            stream = await attacker.open_stranger_stream(
                self._target.identity.peer_id, self._target.addresses, name, version=version
            )
        else:
            stream = await attacker.open_stream(self._target.device_info.id, name, versions=(version,))
        try:
            yield stream
        finally:
            with anyio.CancelScope(shield=True):
                await stream.reset()

    def _running(self, attacker: NetworkingCore) -> int:
        """How many handlers serve the attacker."""
        half = cast("MemorySwarm", self._target._swarm)._halves.get(attacker.identity.peer_id)
        return 0 if half is None else len(half.scopes)

    async def _look_after(self, attacker: NetworkingCore, before: int, problems: list[str]) -> None:
        target_id = self._target.device_info.id
        try:
            with anyio.fail_after(_SLACK_S):
                while self._running(attacker) > before:  # noqa: ASYNC110 - the swarm tells nobody
                    await anyio.sleep(0.005)
        except TimeoutError:
            left = self._running(attacker) - before
            problems.append(f"{left} handler{'s' if left > 1 else ''} did not end with the stream.")
        try:
            await self._paired.ping(target_id, timeout_s=_SLACK_S)
            if self._works is not None:
                with anyio.fail_after(_SLACK_S):
                    await self._works(self._paired, target_id)
        except Exception as error:
            problems.append(f"It does not serve any more: {error or type(error).__name__}")
        while self._failures._queue:
            event = self._failures._queue.popleft()
            if isinstance(event, PluginFailed):
                problems.append(f"Plugin {event.plugin}: {event.reason}.")
