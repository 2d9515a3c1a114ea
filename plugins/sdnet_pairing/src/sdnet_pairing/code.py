"""The 12-word pairing code, and the keys that follow from it (pure).

The code is 128 bits of entropy as 12 words of BIP39's English list. Nothing in this module puts the words into a
``repr``, so a code cannot slip into a log or a traceback.
"""

from __future__ import annotations

import difflib
import functools
import hmac
import re
import unicodedata
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from mnemonic import Mnemonic

from sdnet_core.errors import InvalidRequestError

__all__ = [
    "WORDS",
    "CodeError",
    "CodeKeys",
    "PairingCode",
    "close_words",
    "complete_word",
    "discovery_tag",
    "matches_tag",
    "split_words",
    "word_list",
]

WORDS = 12
"""Words in a code: 128 bits and a checksum of 4 bits (BIP39)."""
ENTROPY_BYTES = 16
TAG_SALT_BYTES = 8
TAG_MAC_BYTES = 8
TAG_BYTES = TAG_SALT_BYTES + TAG_MAC_BYTES

_MAX_TEXT = 1024
_PREFIX_LETTERS = 4  # BIP39: the first four letters tell a word from all others
_SEPARATORS = re.compile(r"[\W_]+")  # whatever is neither a letter nor a digit
_NUMBERING = re.compile(r"\d+")


class CodeError(InvalidRequestError):
    """What was typed is not a pairing code."""

    code = "pairing-code"
    exit_code = 2


@functools.cache
def _mnemonic() -> Mnemonic:
    return Mnemonic("english")


@dataclass(frozen=True, slots=True, repr=False)
class CodeKeys:
    """What a code is turned into, each by its own label of HKDF-SHA256 (RFC 5869).

    :param session_id: the same on both devices; tells nothing of the code.
    :param discovery: keys the tag by which the joiner recognises the device that shows the code.
    :param record: kept for the record that is published under the code across networks.
    :param psk: proves knowledge of the code in the conversation.
    """

    session_id: uuid.UUID
    discovery: bytes = field(repr=False)
    record: bytes = field(repr=False)
    psk: bytes = field(repr=False)

    def __repr__(self) -> str:
        return f"CodeKeys({self.session_id})"


@dataclass(frozen=True, slots=True, repr=False)
class PairingCode:
    """A pairing code.

    :param entropy: 16 random bytes.
    """

    entropy: bytes

    def __post_init__(self) -> None:
        if len(self.entropy) != ENTROPY_BYTES:
            raise ValueError(f"a pairing code has {ENTROPY_BYTES} bytes of entropy")

    def __repr__(self) -> str:
        return "PairingCode(…)"

    @property
    def words(self) -> tuple[str, ...]:
        """The words to show to the person. Never log or store them."""
        return tuple(_mnemonic().to_mnemonic(self.entropy).split())

    @classmethod
    def parse(cls, typed: str | Iterable[str]) -> PairingCode:
        """Read a code as a person types it.

        Case, numbering, and whatever white space, punctuation or frames stand between or around the words do not
        matter; four letters are enough of a word.

        :raises CodeError: there are not 12 words, some are not in the list (says which and what was probably meant),
            or the checksum fails.
        """
        text = typed if isinstance(typed, str) else " ".join(typed)
        given = split_words(text)
        if not given:
            raise CodeError(f"No pairing code was given; it has {WORDS} words.")
        words: list[str] = []
        problems: list[str] = []
        for position, part in enumerate(given, start=1):
            word = complete_word(part)
            if word is None:
                problems.append(_unknown(position, part))
            else:
                words.append(word)
        if len(given) != WORDS:
            problems.insert(0, f"A pairing code has {WORDS} words; {len(given)} came.")
        if problems:
            raise CodeError(" ".join(problems[: WORDS + 1]))
        try:
            return cls(bytes(_mnemonic().to_entropy(words)))
        except ValueError:
            raise CodeError(
                "All the words are in the list, but the code's checksum fails: a word is wrong, or some are in the "
                "wrong order."
            ) from None

    def keys(self) -> CodeKeys:
        """Derive the session id and the keys."""
        root = hmac.digest(b"sdnet/pair/v1", self.entropy, "sha256")
        return CodeKeys(
            session_id=uuid.UUID(bytes=_expand(root, "session id", 16), version=4),
            discovery=_expand(root, "discovery", 32),
            record=_expand(root, "record", 32),
            psk=_expand(root, "psk", 32),
        )


def discovery_tag(discovery: bytes, salt: bytes, peer_id: str) -> bytes:
    """Make the tag that the device showing the code announces: ``salt ‖ HMAC-SHA256(discovery, salt ‖ peer id)[:8]``.

    The peer id is part of it, so that a tag cannot be copied to another peer.

    :param salt: 8 random bytes, new for every announcement.
    """
    if len(salt) != TAG_SALT_BYTES:
        raise ValueError(f"a tag's salt has {TAG_SALT_BYTES} bytes")
    return salt + hmac.digest(discovery, salt + peer_id.encode(), "sha256")[:TAG_MAC_BYTES]


def matches_tag(discovery: bytes, tag: bytes, peer_id: str) -> bool:
    """Whether a peer announces that it shows the code."""
    if len(tag) != TAG_BYTES:
        return False
    return hmac.compare_digest(discovery_tag(discovery, tag[:TAG_SALT_BYTES], peer_id), tag)


def _expand(root: bytes, label: str, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, b"sdnet/pair/v1 " + label.encode()).derive(root)


def word_list() -> tuple[str, ...]:
    """The 2,048 words that a code is made of, in alphabetical order."""
    return tuple(_mnemonic().wordlist)


def split_words(typed: str) -> list[str]:
    """The words in what a person typed, in lower case, without numbering and punctuation.

    :raises CodeError: it is far longer than a code.
    """
    if len(typed) > _MAX_TEXT:
        raise CodeError(f"That is too long for a pairing code, which has {WORDS} words.")
    parts = _SEPARATORS.split(unicodedata.normalize("NFKC", typed).casefold())
    return [part for part in parts if part and not _NUMBERING.fullmatch(part)]


def complete_word(part: str) -> str | None:
    """The word of the list that was typed, or whose first letters (four or more) were; None if there is none."""
    words = _mnemonic().wordlist
    if part in words:
        return part
    fitting = [word for word in words if word.startswith(part)] if len(part) >= _PREFIX_LETTERS else []
    return fitting[0] if len(fitting) == 1 else None


def close_words(part: str, *, limit: int = 3) -> tuple[str, ...]:
    """The words of the list that were probably meant, the likeliest first."""
    begun = [word for word in _mnemonic().wordlist if len(part) > 1 and word.startswith(part[:24])]
    close = difflib.get_close_matches(part[:24], _mnemonic().wordlist, n=limit, cutoff=0.6)
    return tuple(dict.fromkeys((*begun[:limit], *close)))[:limit]


def _unknown(position: int, part: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in part[:24])
    close = difflib.get_close_matches(part[:24], _mnemonic().wordlist, n=1, cutoff=0.6)
    meant = f"; did you mean “{close[0]}”?" if close else "."
    return f"Word {position}, “{shown}”, is not in the list{meant}"
