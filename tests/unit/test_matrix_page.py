"""The fault matrix as a list: whole, without doubles, and ARCHITECTURE.md shows it as it is."""

import re
from collections import Counter

from deploy.sandbox.modes import MODES
from services.executor.refusals import _STATUS_OF_WORD
from tests.matrix.cases import CASES, QUIRKS
from tests.matrix.page import PAGE, unused, written
from tests.stack import ROOT

# Modes that are about how much, how fast, which file or what is accounted afterwards, not about how a run ends.
ORDINARY = {"fast", "fast-1", "long", "drip", "image-two", "image-bad", "svg-image", "adjusted", "late"}
DOCUMENTED_WORDS = {
    "context_length_exceeded", "max_tokens_exceeded", "token_limit_exceeded", "string_too_long", "authentication",
    "permission_denied", "payment_required", "rate_limit_exceeded", "provider_overloaded", "provider_unavailable",
    "invalid_request", "invalid_prompt", "not_found", "precondition_failed", "payload_too_large", "unprocessable",
    "content_policy_violation", "refusal", "invalid_image", "image_too_large", "image_too_small",
    "unsupported_image_format", "image_not_found", "image_download_failed", "server", "timeout", "unmapped",
}  # fmt: skip


def test_architecture_shows_the_matrix_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "run `python -m tests.matrix.page` and commit ARCHITECTURE.md"


def test_every_case_has_a_name_of_its_own_and_every_end_a_case() -> None:
    assert [name for name, times in Counter(case.name for case in CASES).items() if times > 1] == []
    assert unused() == {"unreachable"}, "the upstream of the matrix takes every connection"


def test_every_mode_of_the_sandbox_has_a_case() -> None:
    assert set(MODES) - ORDINARY == {case.mode for case in CASES if case.mode is not None}


def test_every_documented_word_and_status_has_a_case() -> None:
    names = {case.name for case in CASES}
    assert {f"word-{word}" for word in DOCUMENTED_WORDS} <= names
    assert DOCUMENTED_WORDS - set(_STATUS_OF_WORD) == {"unmapped"}
    statuses = {play.status for case in CASES for play in case.plays}
    assert {200, 302, 400, 401, 402, 403, 404, 408, 412, 413, 422, 429, 500, 502, 503, 504, 524, 529} <= statuses


def test_every_quirk_has_a_case_and_those_of_a_message_a_test_of_their_own() -> None:
    assert {number for case in CASES for number in case.quirks} == set(QUIRKS) == set(range(1, 28))
    tests = (ROOT / "tests/unit/test_executor_normalise.py").read_text(encoding="utf-8")
    named = {int(number) for name in re.findall(r"def test_quirk_\w+", tests) for number in re.findall(r"\d+", name)}
    assert {2, *range(4, 17), 20, 21, 22, 24, 25, 26} <= named
