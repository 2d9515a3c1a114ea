"""Asks a person for the code, word by word, at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from .code import WORDS, CodeError, PairingCode, close_words, complete_word, split_words, word_list
from .uri import PairingUri, UriError, is_uri

__all__ = ["ask_for_code"]

Ask = Callable[[str], str]
Say = Callable[[str], None]


def ask_for_code(say: Say, ask: Ask | None = None) -> PairingCode | PairingUri:
    """Ask until the person has given a code whose checksum is right, or a whole link.

    Several words at a time, or all of them, may be typed or pasted; the first letters of a word, four or more, are
    enough, and the tabulator completes them where the terminal's line editor can.

    :param say: tells the person something.
    :param ask: asks for one line; a terminal with completion by default.
    :raises click.Abort: the person gave up.
    """
    with _terminal() if ask is None else _as_it_is(ask) as ask_line:
        return _Prompt(say, ask_line).run()


class _Prompt:
    def __init__(self, say: Say, ask: Ask) -> None:
        self._say = say
        self._ask = ask
        self._words: list[str] = []

    def run(self) -> PairingCode | PairingUri:
        self._say(f"Type the {WORDS} words, one by one or all at once, or paste the link. Tab completes a word.")
        while True:
            if (uri := self._collect()) is not None:
                return uri
            try:
                return PairingCode.parse(self._words)
            except CodeError as error:
                self._say(error.detail)
                self._correct()

    def _collect(self) -> PairingUri | None:
        while len(self._words) < WORDS:
            typed = self._ask(f"Word {len(self._words) + 1} of {WORDS}: ")
            if is_uri(typed):
                try:
                    return PairingUri.parse(typed)
                except UriError as error:
                    self._say(error.detail)
                    continue
            self._take(typed)
        return None

    def _take(self, typed: str) -> None:
        try:
            given = split_words(typed)
        except CodeError as error:
            self._say(error.detail)
            return
        if len(self._words) + len(given) > WORDS:
            self._say(
                f"A code has {WORDS} words; {len(self._words) + len(given)} came. Nothing of that line was taken."
            )
            return
        for part in given:
            word = complete_word(part)
            if word is None:
                self._reject(part)
                return
            self._words.append(word)
        if len(given) > 1 or given != self._words[-1:]:
            self._say("  " + " ".join(self._words[-len(given) :]))

    def _reject(self, part: str) -> None:
        shown = "".join(c if c.isprintable() else "?" for c in part[:24])
        close = close_words(part)
        meant = f" Did you mean {_alternatives(close)}?" if close else ""
        self._say(f"“{shown}” is no word of the list.{meant}")

    def _correct(self) -> None:
        """Let the person replace a word, or begin anew."""
        self._say("\n".join(f"  {number:2}  {word}" for number, word in enumerate(self._words, start=1)))
        while True:
            typed = self._ask("Number of the wrong word, or nothing to begin anew: ").strip()
            if not typed:
                self._words.clear()
                return
            if typed.isascii() and typed.isdigit() and 1 <= int(typed) <= WORDS:
                break
            self._say(f"A number from 1 to {WORDS}.")
        place = int(typed) - 1
        while True:
            (part, *more) = split_words(self._ask(f"Word {place + 1}: ")) or [""]
            word = complete_word(part)
            if word is not None and not more:
                self._words[place] = word
                return
            self._reject(part)


def _alternatives(words: Sequence[str]) -> str:
    quoted = [f"“{word}”" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


@contextmanager
def _as_it_is(ask: Ask) -> Iterator[Ask]:
    yield ask


@contextmanager
def _terminal() -> Iterator[Ask]:
    """Lines from the terminal, with completion by readline where Python has it and it can be used."""
    try:
        import readline
    except ImportError:
        yield _ask_plainly
        return
    if not sys.stdout.isatty():  # the line editor would write the questions into the output
        yield _ask_plainly
        return
    words = word_list()

    def complete(text: str, state: int) -> str | None:
        fitting = [word for word in words if word.startswith(text.lower())] if text else []
        return f"{fitting[state]} " if state < len(fitting) else None

    before = readline.get_completer()
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    readline.set_auto_history(False)  # the words go nowhere but into the code
    try:
        yield _ask_with_editor
    finally:
        readline.set_completer(before)
        readline.set_auto_history(True)


def _ask_with_editor(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        raise click.Abort from None


def _ask_plainly(question: str) -> str:
    answer: str = click.prompt(question.rstrip(" :"), default="", show_default=False, err=True)
    return answer
