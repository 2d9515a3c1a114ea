"""Whatever somebody in between does, both sides agree or nothing is paired."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from sdnet_pairing.steps import Finished, Start

from .conversation import CODE, LAPTOP, OTHER_CODE, PHONE, TABLET, CodeBook, Device, Party, initiator, joiner, talk

MESSAGES = [("joiner", 0), ("initiator", 0), ("joiner", 1), ("initiator", 1), ("joiner", 2)]


def assert_agreement(left: Party, right: Party, left_is: Device = LAPTOP, right_is: Device = PHONE) -> None:
    """The joiner is paired only with what the initiator holds, the initiator is sure only if the joiner is paired."""
    if right.stored is not None:
        assert left.stored is not None
        assert right.stored.root == left.stored.root
        assert right.stored.pairing_id == left.stored.pairing_id
        assert right.stored.session_id == left.stored.session_id
        assert left.stored.device == right_is.info
        assert right.stored.device == left_is.info
    if left.finished:
        assert right.stored is not None


@given(st.data())
def test_one_changed_byte_anywhere_fails_the_conversation(data: st.DataObject) -> None:
    sender, count = target = data.draw(st.sampled_from(MESSAGES), "message")

    def flip(who: str, number: int, message: bytes) -> list[bytes]:
        if (who, number) != target:
            return [message]
        position = data.draw(st.integers(0, len(message) - 1), "position")
        mask = data.draw(st.integers(1, 255), "mask")
        return [message[:position] + bytes([message[position] ^ mask]) + message[position + 1 :]]

    left, right = initiator(PHONE), joiner()
    talk(left, right, flip)
    assert_agreement(left, right)
    if target == ("joiner", 2):  # only the last word is spoilt: the joiner is paired, the initiator holds it pending
        assert right.stored is not None
        assert not left.finished
    else:
        assert right.stored is None
        assert not left.finished
        assert left.failure is not None
        assert right.failure is not None
    if sender == "joiner" and count < 2:
        assert left.stored is None


@given(st.sampled_from(MESSAGES), st.binary(max_size=400))
def test_garbage_in_place_of_a_message_fails_the_conversation(target: tuple[str, int], garbage: bytes) -> None:
    left, right = initiator(PHONE), joiner()
    talk(left, right, lambda who, number, message: [garbage if (who, number) == target else message])
    assert_agreement(left, right)
    assert not left.finished


@given(st.sampled_from(MESSAGES))
def test_a_message_cut_off_at_any_place_fails_the_conversation(target: tuple[str, int]) -> None:
    for keep in (0, 1, 20, -1):
        left, right = initiator(PHONE), joiner()
        talk(left, right, lambda who, n, message, keep=keep: [message[:keep] if (who, n) == target else message])
        assert_agreement(left, right)
        assert not left.finished


@dataclass
class Wires:
    """Several conversations at once, what is on its way in them, and everything that was ever sent."""

    pairs: list[tuple[Party, Party, Device, Device]]
    seen: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parties = [party for left, right, *_ in self.pairs for party in (left, right)]
        self.waiting: list[list[bytes]] = [[] for _ in self.parties]

    def collect(self) -> None:
        """Take what the machines have sent; party 2n and party 2n + 1 mean each other."""
        for number, party in enumerate(self.parties):
            self.seen += party.outbox
            self.waiting[number ^ 1] += party.outbox
            party.outbox.clear()

    def deliver(self, to: int) -> None:
        """Let the oldest message that is on its way to a party arrive."""
        if self.waiting[to]:
            self.parties[to].receive(self.waiting[to].pop(0))

    def drop(self, to: int) -> None:
        del self.waiting[to][:1]

    def inject(self, to: int, which: int) -> None:
        """Give a party any message ever sent by anybody, itself included, once more."""
        self.parties[to].receive(self.seen[which % len(self.seen)])


def several(kind: str) -> Wires:
    """Conversations an attacker may mix."""
    book = CodeBook.of(CODE, OTHER_CODE)
    match kind:
        case "one":
            pairs = [(initiator(PHONE, book=book), joiner(), LAPTOP, PHONE)]
        case "same code, two joiners":
            pairs = [
                (initiator(PHONE, book=book), joiner(), LAPTOP, PHONE),
                (initiator(TABLET, book=book, conversation="2"), joiner(me=TABLET), LAPTOP, TABLET),
            ]
        case "same devices, two codes":
            pairs = [
                (initiator(PHONE, book=book), joiner(), LAPTOP, PHONE),
                (
                    initiator(PHONE, book=book, conversation="2"),
                    joiner(code=OTHER_CODE, conversation="2"),
                    LAPTOP,
                    PHONE,
                ),
            ]
        case "same devices, same code":
            pairs = [
                (initiator(PHONE, book=book), joiner(), LAPTOP, PHONE),
                (initiator(PHONE, book=book, conversation="2"), joiner(conversation="2"), LAPTOP, PHONE),
            ]
        case _:
            pairs = [
                (initiator(PHONE, book=CodeBook.of(CODE)), joiner(), LAPTOP, PHONE),
                # The phone shows the same code that it typed, to whoever comes.
                (
                    initiator(LAPTOP, me=PHONE, book=CodeBook.of(CODE), conversation="2"),
                    joiner(PHONE, me=LAPTOP, conversation="2"),
                    PHONE,
                    LAPTOP,
                ),
            ]
    return Wires(pairs)


KINDS = ["one", "same code, two joiners", "same devices, two codes", "same devices, same code", "both ways"]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("deliver"), st.integers(0, 3), st.just(0)),
        st.tuples(st.sampled_from(["inject", "drop"]), st.integers(0, 3), st.integers(0, 20)),
    ),
    max_size=40,
)


@given(st.sampled_from(KINDS), actions)
def test_drop_replay_reflection_reordering_and_splices_never_split_the_sides(
    kind: str, steps: list[tuple[str, int, int]]
) -> None:
    wires = several(kind)
    for _, right, *_ in wires.pairs:
        right.give(Start())
    wires.collect()
    parties = wires.parties
    for action, party, which in steps:
        to = party % len(parties)
        match action:
            case "deliver":
                wires.deliver(to)
            case "drop":
                wires.drop(to)
            case _:
                wires.inject(to, which)
        wires.collect()
    stored = [party.stored for party in parties if party.stored is not None]
    for left, right, left_is, right_is in wires.pairs:
        # Messages may have crossed between equal conversations: a root is held by one initiator and one joiner at most.
        if right.stored is not None:
            (partner,) = (p for p in parties if p is not right and p.stored and p.stored.root == right.stored.root)
            assert partner.stored is not None
            assert partner.stored.pairing_id == right.stored.pairing_id
            assert partner.stored.device == right_is.info
            assert right.stored.device == left_is.info
        if left.finished:
            assert left.stored is not None
            joined = [p for p in parties if p is not left and p.stored and p.stored.root == left.stored.root]
            assert len(joined) == 1
    assert len({pairing.root for pairing in stored}) >= (len(stored) + 1) // 2


@given(st.integers(0, 5))
def test_a_line_cut_after_any_message_never_splits_the_sides(passed: int) -> None:
    left, right = initiator(PHONE), joiner()
    seen = 0

    def cut(who: str, number: int, message: bytes) -> list[bytes]:
        nonlocal seen
        seen += 1
        return [message] if seen <= passed else []

    talk(left, right, cut)
    assert_agreement(left, right)
    assert (right.stored is not None) == (passed >= 4)
    assert left.finished == (passed == 5)
    assert (left.stored is not None) == (passed >= 3)


@given(st.permutations(range(4)), st.permutations(range(4)))
def test_messages_of_two_conversations_in_any_order_pair_at_most_once_for_a_code(
    first: list[int], second: list[int]
) -> None:
    book = CodeBook.of(CODE)
    pairs = [
        (initiator(PHONE, book=book), joiner()),
        (initiator(TABLET, book=book, conversation="2"), joiner(me=TABLET)),
    ]
    for _, right in pairs:
        right.give(Start())
    for order in (first, second, first, second):
        for step in order:
            left, right = pairs[step % 2]
            source, target = (left, right) if step >= 2 else (right, left)
            if source.outbox:
                target.receive(source.outbox.pop(0))
    finished = [party for pair in pairs for party in pair if any(isinstance(c, Finished) for c in party.commands)]
    assert len(finished) <= 2
    for (left, right), device in zip(pairs, (PHONE, TABLET), strict=True):
        assert_agreement(left, right, right_is=device)
