"""Typing a code word by word."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import pytest

from sdnet_pairing import PairingCode, PairingUri
from sdnet_pairing.prompt import ask_for_code

CODE = PairingCode(bytes(range(16)))
PEER = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrcMLXtXf"


def type_lines(*lines: str) -> tuple[PairingCode | PairingUri, list[str]]:
    """Answer each question with the next line; gives the result and what was said."""
    said: list[str] = []
    waiting = list(lines)
    result = ask_for_code(said.append, lambda question: (said.append(question), waiting.pop(0))[1])
    assert not waiting
    return result, said


def test_one_by_one() -> None:
    result, said = type_lines(*CODE.words)
    assert result == CODE
    assert sum(line.startswith("Word ") for line in said) == 12


def test_all_at_once_with_short_words_and_stray_punctuation() -> None:
    result, said = type_lines("1. " + " ,, ".join(f"“{word[:4].upper()}”" for word in CODE.words) + ".")
    assert result == CODE
    assert "  " + " ".join(CODE.words) in said


def test_a_link_in_place_of_the_words() -> None:
    uri = PairingUri(CODE, PEER, ("/ip4/192.0.2.1/tcp/4001",))
    result, said = type_lines(CODE.words[0], str(uri)[:-1], f"  {uri} ")
    assert result == uri
    assert any("not whole" in line for line in said)


def test_an_unknown_word_is_asked_for_again_with_what_was_meant() -> None:
    first, *rest = CODE.words
    result, said = type_lines(first, "lair", "amonut", *rest)
    assert result == CODE
    assert any("“amonut” is no word of the list. Did you mean “amount”" in line for line in said)
    assert any("“lair”" in line and "“liar”" in line for line in said)


def test_too_many_words_take_nothing() -> None:
    result, said = type_lines(" ".join((*CODE.words, "zoo")), " ".join(CODE.words))
    assert result == CODE
    assert any("13 came" in line for line in said)


def test_a_failed_checksum_lets_one_word_be_corrected() -> None:
    wrong = list(CODE.words)
    wrong[4] = "zoo"
    result, said = type_lines(" ".join(wrong), "99", "5", "zzz", CODE.words[4])
    assert result == CODE
    assert any("checksum fails" in line for line in said)


def test_a_failed_checksum_lets_the_person_begin_anew() -> None:
    result, _ = type_lines(" ".join(reversed(CODE.words)), "", " ".join(CODE.words))
    assert result == CODE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a terminal is made by Linux's pty")
def test_the_tabulator_completes_at_a_real_terminal() -> None:
    pytest.importorskip("readline")
    program = (
        "from sdnet_pairing.prompt import ask_for_code\n"
        "code = ask_for_code(print)\n"
        "print('entropy', code.entropy.hex())\n"
    )
    master, slave = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", program], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 1)[0]:
                try:
                    seen += os.read(master, 65536)
                except OSError:
                    break
        assert text in seen, seen
        seen = seen[seen.index(text) + len(text) :]

    try:
        for number, word in enumerate(CODE.words, start=1):
            wait_for(f"Word {number} of 12: ".encode())
            os.write(master, word[: 4 if len(word) > 4 else None].encode() + b"\t\n")
        wait_for(f"entropy {CODE.entropy.hex()}".encode())
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
        os.close(master)
