"""An answer with nothing in it: asked for once more where that is free, and never where it was billed or nobody knows."""

from collections.abc import Mapping

import orjson
import pytest

from contracts.errors import ErrorCode
from services.executor.calls import nothing_answered
from services.executor.normalise import Answer, Normaliser


def answer_of(content: str, finish: str, usage: Mapping[str, object] | None) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    body: dict[str, object] = {"id": "gen-1", "model": "a/b", "choices": [choice]}
    if usage is not None:
        body["usage"] = usage
    normaliser = Normaliser()
    normaliser.feed(orjson.dumps(body))
    return normaliser.finish()


FREE = {"prompt_tokens": 4, "completion_tokens": 0, "cost": 0}


@pytest.mark.parametrize(
    ("usage", "number", "again"),
    [
        (FREE, 1, True),
        (FREE, 2, False),
        ({"prompt_tokens": 4, "completion_tokens": 500, "cost": 0.01}, 1, False),
        ({"prompt_tokens": 4, "completion_tokens": 0, "cost": 0.01}, 1, False),
        (None, 1, False),
    ],
)
def test_empty_answer_is_asked_for_again_only_when_it_was_free(
    usage: Mapping[str, object] | None, number: int, again: bool
) -> None:
    fault = nothing_answered(answer_of("", "stop", usage), number)
    assert fault is not None
    assert fault.retry is again
    assert fault.billed == "maybe"


@pytest.mark.parametrize(("content", "finish"), [("text", "stop"), ("", "length"), ("text", "content_filter")])
def test_other_answers_are_what_they_are(content: str, finish: str) -> None:
    assert nothing_answered(answer_of(content, finish, FREE), 1) is None


def test_answer_that_a_filter_left_nothing_of_is_moderated_and_not_asked_for_again() -> None:
    fault = nothing_answered(answer_of("", "content_filter", FREE), 1)
    assert fault is not None
    assert (fault.code, fault.retry, fault.billed) == (ErrorCode.MODERATED, False, "maybe")
