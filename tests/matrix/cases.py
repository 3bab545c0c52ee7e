"""The fault matrix: everything that the reference says an upstream does, and the right end of a run to which it happens.

`tests/integration/test_fault_matrix.py` runs every case plain and streamed, `tests/e2e/test_faults.py` those that the
sandbox can do over the whole system, and the tables of ARCHITECTURE.md are written from this (`python -m tests.matrix.page`).
"""

from __future__ import annotations

from tests.matrix.answers import ANSWERS
from tests.matrix.broken import BROKEN_ANSWERS
from tests.matrix.case import Case
from tests.matrix.refusals import REFUSALS

SECTIONS: dict[str, list[Case]] = {**REFUSALS, **BROKEN_ANSWERS, **ANSWERS}
CASES: list[Case] = [case for section in SECTIONS.values() for case in section]
