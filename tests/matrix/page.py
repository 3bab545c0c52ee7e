"""Writes the tables of the fault matrix into ARCHITECTURE.md, between the two marks there: `python -m tests.matrix.page`."""

from __future__ import annotations

from collections.abc import Iterable

from tests.matrix import endings
from tests.matrix.case import Case
from tests.matrix.cases import CASES, QUIRKS, SECTIONS
from tests.matrix.endings import DONE, Ending
from tests.stack import ROOT

PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- the fault matrix, written by tests/matrix/page.py -->\n", "<!-- the end of the fault matrix -->\n"


def written(page: str) -> str:
    """The page with the matrix of today."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def tables() -> str:
    """All tables: what happens, and what it is called."""
    parts = []
    for title, cases in SECTIONS.items():
        head = "| case | upstream | attempts | end | cost | sandbox |\n|---|---|---|---|---|---|\n"
        parts.append(f"#### {title}\n\n{head}{_rows(map(_case, cases))}")
    known = [ending for ending in vars(endings).values() if isinstance(ending, Ending) and ending is not DONE]
    head = "| end | code | HTTP | again | what the caller reads |\n|---|---|---|---|---|\n"
    parts.append(f"#### The ends that are failures\n\n{head}{_rows(map(_ending, known))}")
    head = "| | quirk | cases |\n|---|---|---|\n"
    parts.append(f"#### The known quirks of answers\n\n{head}{_rows(map(_quirk, QUIRKS))}")
    return "\n".join(parts)


def _rows(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


def _quirk(number: int) -> str:
    names = ", ".join(case.name for case in CASES if number in case.quirks)
    return f"| {number} | {QUIRKS[number]} | {names} |"


def _case(case: Case) -> str:
    says = case.says if case.plain is None else f"{case.says} ◦"
    mode = f"`{case.mode}`" if case.mode else ""
    return f"| {case.name} | {says} | {case.attempts} | {_end(case)} | {case.cost} | {mode} |"


def _end(case: Case) -> str:
    words = [f"failed: {case.ending.name}"]
    if case.succeeds:
        words = ["succeeded" if case.finish == "stop" else f"succeeded, `{case.finish or 'no finish'}`"]
    return ", ".join([*words, "truncated"] if case.truncated else words)


def _ending(ending: Ending) -> str:
    stranger = f" *Not the creator:* {ending.stranger}" if ending.stranger else ""
    again = "yes" if ending.retryable else "no"
    return f"| {ending.name} | `{ending.code}` | {ending.status} | {again} | {ending.sentence}{stranger} |"


def unused() -> set[str]:
    """Ends that no case has."""
    used = {case.ending.name for case in CASES}
    return {ending.name for ending in vars(endings).values() if isinstance(ending, Ending)} - used


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
