"""The fault matrix: everything that the reference says an upstream does, and the right end of a run to which it happens.

`tests/integration/test_fault_matrix.py` runs every case plain and streamed, `tests/e2e/test_faults.py` those that the
sandbox can do over the whole system, and the tables of ARCHITECTURE.md are written from this (`python -m tests.matrix.page`).
"""

from __future__ import annotations

from tests.matrix.answers import ANSWERS
from tests.matrix.broken import BROKEN_ANSWERS
from tests.matrix.case import Case
from tests.matrix.refusals import REFUSALS

QUIRKS = {
    1: "white space before the JSON of a document",
    2: "a finish that comes twice, a usage in three shapes",
    3: "a `model` that is not the one asked for",
    4: "`native_finish_reason` null or missing, finishes of no known name",
    5: "`finish_reason: error`",
    6: "no finish although there are tool calls",
    7: "no usage",
    8: "arguments of a tool missing, null or empty",
    9: "ids and indexes of tool calls that repeat",
    10: "reasoning that is redacted or encrypted",
    11: "reasoning as typed details",
    12: "one reasoning under several names, thinking tags in the text",
    13: "content as a list of parts",
    14: "an image beside an empty content",
    15: "a `stop` with nothing in it",
    16: "citations without their optional fields",
    17: "“No endpoints found” that means the parameters",
    18: "JSON in a fence, or behind prose",
    19: "the cause in `metadata.raw` alone",
    20: "connections that are cut in the middle",
    21: "cost 0 where the account's own provider key was used",
    22: "text that begins with white space",
    23: "a listed model that nothing serves",
    24: "a refusal and null content",
    25: "fields that are null instead of absent",
    26: "names that are absent",
    27: "a `:free` id whose time is over",
}
"""What a normaliser must survive, by the numbers that cases and tests name."""

SECTIONS: dict[str, list[Case]] = {**REFUSALS, **BROKEN_ANSWERS, **ANSWERS}
CASES: list[Case] = [case for section in SECTIONS.values() for case in section]
