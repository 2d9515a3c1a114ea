"""One link's conversation, without I/O."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from sdnet_core.errors import ProtocolError
from sdnet_sync.apply import Applied
from sdnet_sync.limits import WINDOW_BYTES
from sdnet_sync.machine import (
    ApplyBatches,
    Command,
    Deliver,
    Diverged,
    Fork,
    LinkMachine,
    ReadLog,
    ReadSnapshot,
    Send,
    TakeSnapshot,
)
from sdnet_sync.members import MembershipHistory
from sdnet_sync.messages import Ack, Goodbye, Hello, Pull, Push, SnapshotBegin, SnapshotEnd, SnapshotPage
from sdnet_sync.operations import SignedBatch
from sdnet_sync.standing import Head, View

LIBRARY = b"L" * 16
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def view(vector: dict[bytes, int], *, root: bytes = bytes(16), loading: bool = False, fork: bytes = b"") -> View:
    heads = {author: Head(sequence=n, hash=(fork or author) * 2) for author, n in vector.items()}
    members = MembershipHistory(A, bytes(32))
    return View(heads, members, lambda: root, loading, False, {}, {}, "x")


def sent(commands: list[Command]) -> list[Any]:
    return [command.message for command in commands if isinstance(command, Send)]


def batch(size: int = 100) -> SignedBatch:
    return SignedBatch(body=bytes(size), signature=bytes(64))


class Talk:
    """Two machines, and what is on the way between them; batches are taken for what they say in this dictionary."""

    def __init__(self, ours: View, theirs: View) -> None:
        self.machines = {A: LinkMachine(A), B: LinkMachine(B)}
        self.views = {A: ours, B: theirs}
        self.way: dict[bytes, deque[Any]] = {A: deque(), B: deque()}
        self.log: list[tuple[bytes, Any]] = []
        self.content: dict[int, tuple[bytes, int]] = {}
        for device in (A, B):
            self.run(device, self.machines[device].share(LIBRARY, self.views[device]))

    def run(self, device: bytes, commands: list[Command]) -> None:
        machine, other = self.machines[device], B if device == A else A
        for command in commands:
            match command:
                case Send():
                    self.log.append((device, command.message))
                    self.way[other].append(command.message)
                case ReadLog():
                    found = []
                    for author, n in self.views[device].vector.items():
                        for sequence in range(command.after.get(author, 0) + 1, n + 1):
                            made = batch(1000 + len(self.content))
                            self.content[len(made.body)] = author, sequence
                            found.append((author, sequence, made))
                    self.run(device, machine.log_read(LIBRARY, found, None, command.after))
                case ApplyBatches():
                    pushed = dict(self.content[len(b.body)] for b in command.batches)
                    vector = self.views[device].vector
                    self.commit(device, {a: max(n, vector.get(a, 0)) for a, n in {**vector, **pushed}.items()})
                    self.run(device, machine.applied(LIBRARY, Applied(taken=len(pushed), pushed=pushed)))

    def commit(self, device: bytes, vector: dict[bytes, int]) -> None:
        self.views[device] = view(vector)
        self.run(device, self.machines[device].committed(LIBRARY, self.views[device]))

    def settle(self) -> None:
        while any(self.way.values()):
            for device in (A, B):
                if self.way[device]:
                    self.run(device, self.machines[device].received(self.way[device].popleft()))

    def said(self, kind: type) -> list[bytes]:
        return [device for device, message in self.log if isinstance(message, kind)]


def test_each_gets_what_it_lacks_once() -> None:
    talk = Talk(view({A: 3, C: 2}), view({B: 1, C: 5}))
    talk.settle()
    assert talk.views[A].vector == talk.views[B].vector == {A: 3, B: 1, C: 5}
    assert sorted(talk.said(Push)) == [A, B]
    assert all(machine.in_step(LIBRARY) for machine in talk.machines.values())
    before = len(talk.log)
    talk.commit(A, {A: 4, B: 1, C: 5})
    talk.settle()
    assert [type(message) for _, message in talk.log[before:]] == [Push, Ack]
    assert talk.views[B].vector == {A: 4, B: 1, C: 5}


def test_equal_replicas_say_little() -> None:
    talk = Talk(view({A: 3, C: 2}), view({A: 3, C: 2}))
    talk.settle()
    assert talk.said(Push) == []
    assert len(talk.log) <= 6


def test_what_came_from_elsewhere_waits_until_the_other_side_had_its_chance() -> None:
    talk = Talk(view({A: 1}), view({A: 1}))
    talk.settle()
    talk.commit(A, {A: 1, C: 1})
    assert talk.machines[A].holds(LIBRARY)
    talk.commit(B, {A: 1, C: 1})
    talk.settle()
    talk.run(A, talk.machines[A].relay(LIBRARY))
    talk.run(B, talk.machines[B].relay(LIBRARY))
    talk.settle()
    assert talk.said(Push) == [], "both had it from elsewhere"
    talk.commit(A, {A: 1, C: 2})
    talk.settle()
    assert talk.said(Push) == []
    talk.run(A, talk.machines[A].relay(LIBRARY))
    talk.settle()
    assert talk.views[B].vector == {A: 1, C: 2}
    assert talk.said(Push) == [A]


def linked(ours: View, theirs: dict[bytes, int]) -> LinkMachine:
    machine = LinkMachine(A)
    machine.share(LIBRARY, ours)
    machine.received(Hello(library=LIBRARY, heads={}, root=bytes(16), answer=True))
    assert bool(machine.received(Pull(library=LIBRARY, after=theirs))) == bool(ours.vector)
    return machine


def test_no_more_is_under_way_than_the_window() -> None:
    machine = LinkMachine(A)
    machine.share(LIBRARY, view({A: 100}))
    commands = machine.received(Pull(library=LIBRARY, after={}))
    pushes = 0
    while commands and isinstance(commands[-1], ReadLog):
        pushes += 1
        commands = machine.log_read(LIBRARY, [(A, pushes, batch(512 << 10))], pushes, {})
    assert pushes == WINDOW_BYTES // (512 << 10)
    assert machine.received(Ack(library=LIBRARY, vector={}, taken=0)) == []
    assert [type(c) for c in machine.received(Ack(library=LIBRARY, vector={}, taken=1))] == [ReadLog]
    # One that acknowledges more than it got gains nothing.
    assert machine.received(Ack(library=LIBRARY, vector={}, taken=1000)) == []


def test_a_gap_is_asked_about_a_few_times_only() -> None:
    machine = linked(view({A: 1}), {})
    asked = 0
    for _ in range(20):
        asked += len([m for m in sent(machine.applied(LIBRARY, Applied(gaps={C}))) if isinstance(m, Pull)])
    assert asked == 4
    assert [type(m) for m in sent(machine.retry(LIBRARY))] == [Pull]


def test_a_device_too_far_behind_gets_a_snapshot_from_an_owner_only() -> None:
    machine = linked(view({A: 5}), {})
    assert machine.log_gone(LIBRARY, may_give=False) == []
    assert machine.committed(LIBRARY, view({A: 6})) == []
    machine = linked(view({A: 5}), {})
    assert machine.log_gone(LIBRARY, may_give=True) == [ReadSnapshot(LIBRARY, first=True)]
    begin = SnapshotBegin(library=LIBRARY, heads=(), roles=(), vouched={}, root=bytes(16), entries=0)
    page = SnapshotPage(library=LIBRARY, through=b"\xff" * 16, states=())
    assert machine.snapshot_read(LIBRARY, begin, 0) == [Send(begin), ReadSnapshot(LIBRARY, first=False)]
    machine.snapshot_read(LIBRARY, page, WINDOW_BYTES)
    assert machine.received(Ack(library=LIBRARY, vector={}, taken=1)) == []
    assert machine.received(Ack(library=LIBRARY, vector={}, taken=1)) == [ReadSnapshot(LIBRARY, first=False)]
    assert machine.snapshot_read(LIBRARY, SnapshotEnd(library=LIBRARY), 0)[0] == Send(SnapshotEnd(library=LIBRARY))


def test_a_snapshot_is_taken_in_order() -> None:
    machine = linked(view({}), {})
    with pytest.raises(ProtocolError, match="beginning"):
        machine.received(SnapshotEnd(library=LIBRARY))
    begin = SnapshotBegin(library=LIBRARY, heads=(), roles=(), vouched={}, root=bytes(16), entries=0)
    for message in (begin, SnapshotPage(library=LIBRARY, through=bytes(16), states=()), SnapshotEnd(library=LIBRARY)):
        assert machine.received(message) == [TakeSnapshot(message)]
        [ack] = sent(machine.snapshot_taken(LIBRARY, message))
        assert ack.taken == 1


def test_a_replica_that_is_not_whole_asks_for_a_snapshot() -> None:
    machine = LinkMachine(A)
    machine.share(LIBRARY, view({A: 1}, loading=True))
    messages = sent(machine.received(Hello(library=LIBRARY, heads={}, root=bytes(16), answer=True)))
    assert [message.rebuild for message in messages] == [True]


def test_forks_and_divergence_are_found_by_hello() -> None:
    theirs = LinkMachine(B)
    [hello] = sent(theirs.share(LIBRARY, view({A: 2, C: 2}, fork=b"x" * 16)))
    machine = LinkMachine(A)
    machine.share(LIBRARY, view({A: 2, C: 1}))
    commands = machine.received(hello)
    assert Fork(LIBRARY, A, 2) in commands
    assert not any(isinstance(command, Fork) and command.author == C for command in commands)
    machine = LinkMachine(A)
    machine.share(LIBRARY, view({C: 1}, root=b"r" * 16))
    [hello] = sent(LinkMachine(B).share(LIBRARY, view({C: 1}, root=b"q" * 16)))
    assert Diverged(LIBRARY) in machine.received(hello)


def test_nothing_is_said_about_what_is_not_shared() -> None:
    machine = LinkMachine(A)
    for message in (
        Hello(library=LIBRARY, heads={}, root=bytes(16), answer=False),
        Pull(library=LIBRARY, after={}),
        Push(library=LIBRARY, batches=(batch(),)),
        SnapshotEnd(library=LIBRARY),
    ):
        assert machine.received(message) == []
    machine.share(LIBRARY, view({A: 1}))
    goodbye = Goodbye(library=LIBRARY, reason="paused")
    assert machine.received(goodbye) == [Deliver(goodbye)]
    assert machine.received(Pull(library=LIBRARY, after={})) == []
    assert machine.committed(LIBRARY, view({A: 2})) == []
