from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import ProtocolError
from sdnet_file_transfer import machine
from sdnet_file_transfer import messages as m
from sdnet_file_transfer.machine import ReceiverMachine, SenderMachine

ID = uuid.UUID(int=7)
FOLDER = m.Item(("d",), True, 0, 0, False)
FILE = m.Item(("d", "f"), False, 10, 0, False)
OTHER = m.Item(("g",), False, 3, 0, False)
ITEMS = (FOLDER, FILE, OTHER)
DIGEST = blake3(b"0123456789").digest()


def segment(item: int, offset: int, data: bytes, digest: bytes | None = None, failure: str | None = None) -> bytes:
    flags = 1 if digest is not None else 2 if failure is not None else 0
    data = failure.encode() if failure is not None else data
    return m.SEGMENT_HEADER.pack(flags, item, offset, len(data)) + data + (digest or b"")


def record(*pieces: bytes) -> bytes:
    return b"\x01" + b"".join(pieces)


def offered(items: Sequence[m.Item] = ITEMS) -> tuple[SenderMachine, ReceiverMachine, machine.Offered]:
    sender, receiver = SenderMachine(ID, "send", items), ReceiverMachine()
    events = [receiver.receive(record) for record in sender.start()]
    assert events[:-1] == [None] * (len(events) - 1)
    assert isinstance(events[-1], machine.Offered)
    return sender, receiver, events[-1]


def accepted(resume: Sequence[m.ItemResume] = ()) -> tuple[SenderMachine, ReceiverMachine]:
    sender, receiver, _ = offered()
    events = [sender.receive(record) for record in receiver.accept(resume)]
    assert events == [machine.Accepted({held.item: held for held in resume})]
    return sender, receiver


def test_a_whole_conversation() -> None:
    sender, receiver, offer = offered()
    assert offer == machine.Offered(ID, "send", ITEMS, 13)
    [answer] = receiver.accept([])
    assert sender.receive(answer) == machine.Accepted({})
    first = list(receiver.chunks(record(segment(1, 0, b"0123"))))
    assert bytes(first[0].data) == b"0123"
    rest = record(segment(1, 4, b"456789", DIGEST), segment(2, 0, b"abc", blake3(b"abc").digest()))
    assert [chunk.item for chunk in receiver.chunks(rest)] == [1, 2]
    assert receiver.receive(sender.complete(0)) == machine.SentAll(0)
    assert sender.receive(receiver.acknowledge(0)) == machine.Acknowledged(0)


def test_a_long_manifest_comes_in_pieces() -> None:
    items = [m.Item((f"file-{number}",), False, number, 0, False) for number in range(5000)]
    sender = SenderMachine(ID, "send", items)
    assert len(list(sender.start())) == 5
    assert offered(items)[2].items == tuple(items)


def test_much_to_resume_comes_in_pieces() -> None:
    items = [m.Item((f"file-{number}",), False, 1, 0, False) for number in range(5000)]
    sender, receiver, _ = offered(items)
    resume = [m.ItemResume(number, 1, bytes(32), False) for number in range(5000)]
    events = [sender.receive(record) for record in receiver.accept(resume)]
    assert len(events) == 5
    assert isinstance(events[-1], machine.Accepted)
    assert len(events[-1].resume) == 5000


def test_a_rejection_says_why() -> None:
    sender, receiver, _ = offered()
    assert sender.receive(receiver.reject("policy", "No \x1b[31mfiles")) == machine.Rejected(
        "policy", "No \ufffd[31mfiles"
    )


def test_what_was_received_before_is_not_sent_again() -> None:
    sender, receiver, _ = offered()
    assert sender.receive(receiver.already_complete()) == machine.Acknowledged(0, before=True)


def test_a_file_goes_on_where_it_was_left_or_starts_anew() -> None:
    held = m.ItemResume(1, 4, bytes(32), False)
    _, receiver = accepted([held])
    assert len(list(receiver.chunks(record(segment(1, 4, b"456789", DIGEST))))) == 1
    _, receiver = accepted([held])
    assert len(list(receiver.chunks(record(segment(1, 0, b"0123456789", DIGEST))))) == 1


def test_a_file_that_failed_is_counted() -> None:
    sender, receiver = accepted()
    data = record(segment(1, 0, b"01"), segment(1, 2, b"", failure="vanished"), segment(2, 0, b"", failure="gone"))
    assert [chunk.failure for chunk in receiver.chunks(data)] == [None, "vanished", "gone"]
    assert receiver.receive(sender.complete(2)) == machine.SentAll(2)


def test_either_side_may_cancel_or_fail_at_any_time() -> None:
    sender, receiver, _ = offered()
    cancel = m.encode_control(m.TransferCancel(reason="no"))
    failure = m.encode_control(m.TransferFailure(code="storage", reason="full"))
    assert sender.receive(cancel) == machine.PeerCancelled("no")
    assert receiver.receive(failure) == machine.PeerFailed("storage", "full")
    assert ReceiverMachine().receive(cancel) == machine.PeerCancelled("no")


@pytest.mark.parametrize(
    "data",
    [
        record(segment(0, 0, b"x")),  # a folder
        record(segment(3, 0, b"x")),  # not in the manifest
        record(segment(2**32 - 1, 0, b"x")),
        record(segment(1, 1, b"x")),  # begins in the middle
        record(segment(1, 0, b"0123"), segment(1, 5, b"x")),  # a gap
        record(segment(1, 0, b"0123"), segment(1, 3, b"x")),  # backwards
        record(segment(1, 0, b"0123"), segment(1, 0, b"0123")),  # again
        record(segment(1, 0, b"0123456789x")),  # more than declared
        record(segment(1, 0, b"0123"), segment(1, 4, b"456789x", DIGEST)),
        record(segment(1, 0, b"0123", DIGEST)),  # less than declared
        record(segment(1, 0, b"0123"), segment(2, 0, b"abc", DIGEST)),  # two at once
        record(segment(2, 0, b"abc", DIGEST), segment(2, 0, b"abc", DIGEST)),  # twice
        record(segment(2, 0, b"", failure="x"), segment(2, 0, b"abc", DIGEST)),
        record(segment(2, 2**64 - 1, b"abc")),
    ],
)
def test_contents_that_do_not_fit_the_manifest_are_refused(data: bytes) -> None:
    _, receiver = accepted()
    with pytest.raises(ProtocolError):
        list(receiver.chunks(data))


def test_what_has_landed_takes_nothing() -> None:
    _, receiver = accepted([m.ItemResume(1, 10, bytes(32), True)])
    with pytest.raises(ProtocolError):
        list(receiver.chunks(record(segment(1, 0, b"0123456789", DIGEST))))


def test_complete_too_early_is_refused() -> None:
    sender, receiver = accepted()
    list(receiver.chunks(record(segment(2, 0, b"abc", DIGEST))))
    with pytest.raises(ProtocolError):
        receiver.receive(sender.complete(0))


def test_complete_with_another_count_of_failures_is_refused() -> None:
    sender, receiver = accepted()
    list(receiver.chunks(record(segment(1, 0, b"", failure="x"), segment(2, 0, b"abc", DIGEST))))
    with pytest.raises(ProtocolError):
        receiver.receive(sender.complete(0))


@pytest.mark.parametrize(
    "items",
    [
        [m.Item(("..",), False, 0, 0, False)],
        [m.Item(("a", ".."), False, 0, 0, False)],
        [m.Item(("/etc/passwd",), False, 0, 0, False)],
        [m.Item(("a\0",), False, 0, 0, False)],
        [OTHER, OTHER],
        [m.Item(("é",), False, 0, 0, False), m.Item(("e\u0301",), False, 0, 0, False)],
        [FILE],  # its folder is not named
        [FILE, FOLDER],  # or named too late
        [OTHER, m.Item(("g", "x"), False, 0, 0, False)],  # its folder is a file
        [m.Item(("d",), True, 1, 0, False)],
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(items: list[m.Item]) -> None:
    sender, receiver = SenderMachine(ID, "send", items), ReceiverMachine()
    with pytest.raises(ProtocolError):
        [receiver.receive(record) for record in sender.start()]


def test_a_manifest_with_more_items_or_another_sum_is_refused() -> None:
    def request(count: int, total: int) -> bytes:
        return m.encode_control(
            m.FileTransferRequest(
                transfer_id=ID.bytes, purpose="send", item_count=count, total_bytes=total, items=ITEMS
            )
        )

    with pytest.raises(ProtocolError, match="more files"):
        ReceiverMachine().receive(request(2, 13))
    with pytest.raises(ProtocolError, match="sum"):
        ReceiverMachine().receive(request(3, 12))
    assert ReceiverMachine().receive(request(4, 13)) is None


@pytest.mark.parametrize(
    "resume",
    [
        [m.ItemResume(0, 0, bytes(32), False)],  # a folder
        [m.ItemResume(3, 0, bytes(32), False)],  # not in the manifest
        [m.ItemResume(1, 11, bytes(32), False)],  # more than there is
        [m.ItemResume(1, 9, bytes(32), True)],  # landed, but not whole
        [m.ItemResume(1, 9, bytes(32), False)] * 2,
    ],
)
def test_a_receiver_that_claims_what_cannot_be_is_refused(resume: list[m.ItemResume]) -> None:
    sender, receiver, _ = offered()
    with pytest.raises(ProtocolError):
        [sender.receive(record) for record in receiver.accept(resume)]


MESSAGES = [
    m.FileTransferRequest(transfer_id=ID.bytes, purpose="send", item_count=3, total_bytes=13, items=ITEMS),
    m.FileTransferItems(items=(OTHER,)),
    m.FileTransferResponse(
        transfer_id=ID.bytes, accepted=True, complete=False, code="", reason="", resume_count=1, resume=()
    ),
    m.FileTransferResume(resume=(m.ItemResume(1, 4, bytes(32), False),)),
    m.TransferComplete(failed=0),
    m.TransferAck(failed=0),
    m.TransferHeartbeat(),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=6), st.booleans())
def test_messages_in_any_order_are_taken_or_refused(script: list[m.ControlMessage], as_sender: bool) -> None:
    """A machine never acknowledges or ends what was not complete, whatever comes."""
    sender, receiver = SenderMachine(ID, "send", ITEMS), ReceiverMachine()
    list(sender.start())
    for message in script:
        try:
            event = (sender if as_sender else receiver).receive(m.encode_control(message))
        except ProtocolError:
            return
        assert not isinstance(event, machine.Acknowledged | machine.SentAll)
