"""Which tests of this folder need a program that may not be here."""

from tests.watching import promtool

# Not collected without promtool; tests/conftest.py says so at the end.
collect_ignore = [] if promtool() else ["test_promtool.py"]
