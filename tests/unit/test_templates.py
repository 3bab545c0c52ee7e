"""The template language shared by catalog and executor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.templates import find_variables, render


def test_variables_are_found_once_in_order_of_first_use() -> None:
    assert find_variables("{{b}} and {{ a }} and {{b}} {{\n_c9\t}}") == ["b", "a", "_c9"]


@pytest.mark.parametrize(
    "literal",
    [
        "{{}}",
        "{{ }}",
        "{{9a}}",
        "{{a-b}}",
        "{{a b}}",
        "{{a}",
        "{a}}",
        "{{a.b}}",
        "{{é}}",
        "{{" + "a" * 65 + "}}",
        "{ {a} }",
    ],
)
def test_braces_without_a_valid_name_are_literal(literal: str) -> None:
    assert find_variables(literal) == []
    assert render(literal, {"a": "x"}) == literal


def test_extra_braces_around_a_variable_stay() -> None:
    assert render("{{{a}}}", {"a": "x"}) == "{x}"


def test_a_value_is_never_expanded_again() -> None:
    assert render("{{a}}{{b}}", {"a": "{{b}}", "b": "{{a}}"}) == "{{b}}{{a}}"
    assert render("{{a}}b}}", {"a": "{{", "b": "secret"}) == "{{b}}"


def test_backslashes_and_group_references_in_values_are_text() -> None:
    assert render("{{a}}", {"a": r"\1 \g<0> \n"}) == r"\1 \g<0> \n"


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="b"):
        render("{{a}} {{b}}", {"a": "x"})


PIECES = {"{{a}}": "a", "{{ b }}": "b"}


@given(
    st.lists(st.one_of(st.text("{}-\\"), st.sampled_from([*PIECES, "{{", "}}"]))),
    st.text(),
    st.text(),
)
def test_rendering_equals_cutting_at_the_variables(parts: list[str], a: str, b: str) -> None:
    rest = "".join(parts)
    rendered = render(rest, {"a": a, "b": b})
    expected = ""
    while found := [(rest.find(piece), piece) for piece in PIECES if piece in rest]:
        at, piece = min(found)
        expected += rest[:at] + {"a": a, "b": b}[PIECES[piece]]
        rest = rest[at + len(piece) :]
    assert rendered == expected + rest
