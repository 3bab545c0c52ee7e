"""Counting typing mistakes, against a plain reading of the definition."""

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from services.catalog.spelling import Vocabulary, count_mistakes

words = st.text("abc", max_size=7)


def by_definition(typed: str, meant: str) -> int:
    """Optimal string alignment: missing, added, wrong, swapped with its neighbour."""

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        best = min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (typed[i - 1] != meant[j - 1]),
        )
        if i > 1 and j > 1 and typed[i - 1] == meant[j - 2] and typed[i - 2] == meant[j - 1]:
            best = min(best, distance(i - 2, j - 2) + 1)
        return best

    return distance(len(typed), len(meant))


@given(words, words, st.integers(0, 3))
def test_mistakes_are_counted_up_to_the_limit(typed: str, meant: str, at_most: int) -> None:
    expected = by_definition(typed, meant)
    assert count_mistakes(typed, meant, at_most, beginning=False) == (expected if expected <= at_most else None)


@given(words, words, st.integers(0, 3))
def test_what_was_typed_may_be_a_beginning(typed: str, meant: str, at_most: int) -> None:
    expected = min(by_definition(typed, meant[:end]) for end in range(len(meant) + 1))
    assert count_mistakes(typed, meant, at_most, beginning=True) == (expected if expected <= at_most else None)


def test_the_nearest_words_are_meant_and_only_those() -> None:
    vocabulary = Vocabulary(["sonnet", "sonar", "bonnet", "anthropic", "gpt", "gap", "grok", "4o"])
    assert vocabulary.near("sonet") == ("sonnet",)
    assert vocabulary.near("xonnet") == ("sonnet", "bonnet")
    assert vocabulary.near("antrophic") == ("anthropic",)
    assert vocabulary.near("antro") == (), "too short to be a beginning with a mistake in it"
    assert vocabulary.near("gtp") == ("gpt",)
    assert vocabulary.near("grk") == ("grok",)


def test_digits_and_very_short_words_are_never_put_right() -> None:
    vocabulary = Vocabulary(["gpt4", "4o", "ai", "v3"])
    assert [vocabulary.near(word) for word in ("gpt5", "5o", "ia", "v4", "")] == [()] * 5
