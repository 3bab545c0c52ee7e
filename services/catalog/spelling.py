"""What somebody probably meant who typed a word that stands nowhere in the catalog.

The words of even 10,000 models are few enough to look at all of them: a mask of letters rules nearly all out with one
machine instruction each, and only the rest are measured. Digits are never corrected: `claude-3.5` is not a misspelt
`claude-3.7`, and one letter more or less in a short word makes another word.
"""

from __future__ import annotations

from collections.abc import Iterable

_SHORTEST = 3
_LONG = 6
"""From this length on the beginning of a longer word is a match as well, as if somebody were still typing."""
_TWO_MISTAKES_FROM = 8


class Vocabulary:
    """Words, lower case. Immutable."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = [(word, _letters(word)) for word in dict.fromkeys(words) if not _has_digit(word)]

    def near(self, word: str) -> tuple[str, ...]:
        """The words that are the fewest mistakes away, none when all are too far; never for words with digits."""
        if len(word) < _SHORTEST or _has_digit(word):
            return ()
        allowed = 2 if len(word) >= _TWO_MISTAKES_FROM else 1
        letters = _letters(word)
        best: list[str] = []
        for known, known_letters in self._words:
            # Every mistake brings in one letter at most that the known word does not have.
            if (letters & ~known_letters).bit_count() > allowed:
                continue
            mistakes = count_mistakes(word, known, allowed, beginning=len(word) >= _LONG)
            if mistakes is None or (len(word) == _SHORTEST and not _short_word_meant(word, known)):
                continue
            if mistakes < allowed:
                allowed, best = mistakes, []
            best.append(known)
        return tuple(best)


def _short_word_meant(typed: str, meant: str) -> bool:
    """`gtp` for `gpt` and `grk` for `grok`, but not `gap` for `gpt`."""
    return sorted(typed) == sorted(meant) or (len(meant) > len(typed) and typed[0] == meant[0])


def count_mistakes(typed: str, meant: str, at_most: int, *, beginning: bool) -> int | None:
    """Letters missing, added, wrong, or swapped with their neighbour; None when they are more than `at_most`.

    With `beginning`, what was typed may be the beginning of what was meant.
    """
    if len(typed) - len(meant) > at_most or (not beginning and len(meant) - len(typed) > at_most):
        return None
    meant = meant[: len(typed) + at_most]
    before: list[int] = []
    above = list(range(len(meant) + 1))
    for row, letter in enumerate(typed, 1):
        current = [row]
        for column, other in enumerate(meant, 1):
            fewest = min(above[column] + 1, current[-1] + 1, above[column - 1] + (letter != other))
            if row > 1 and column > 1 and letter == meant[column - 2] and typed[row - 2] == other:
                fewest = min(fewest, before[column - 2] + 1)
            current.append(fewest)
        if min(current) > at_most:
            return None
        before, above = above, current
    mistakes = min(above) if beginning else above[-1]
    return mistakes if mistakes <= at_most else None


def _letters(word: str) -> int:
    """A set of characters as bits; those that share a bit only rule out less."""
    bits = 0
    for character in word:
        bits |= 1 << (ord(character) % 64)
    return bits


def _has_digit(word: str) -> bool:
    return any(character.isdigit() for character in word)
