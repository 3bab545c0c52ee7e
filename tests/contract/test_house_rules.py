"""Small rules of the house that nothing else checks."""

from __future__ import annotations

import ast
import re
from collections import Counter

from tests.contract.source import OURS, ROOT, python_files, tree, where

MAX_LINES = 500
MAX_FUNCTION_LINES = 60


def test_test_files_have_names_of_their_own() -> None:
    names = Counter(path.name for path in python_files("tests") if path.name.startswith("test_"))
    assert [name for name, times in names.items() if times > 1] == []


def test_modules_open_with_a_paragraph() -> None:
    files = [path for folder in OURS for path in python_files(folder) if path.name != "__init__.py"]
    assert [path.relative_to(ROOT).as_posix() for path in files if not ast.get_docstring(tree(path))] == []


def test_files_and_functions_stay_readable() -> None:
    files = python_files("contracts", "services", "deploy")
    long = [path.relative_to(ROOT).as_posix() for path in files if len(path.read_text().splitlines()) > MAX_LINES]
    assert long == [], f"more than {MAX_LINES} lines"
    functions = [
        f"{where(path, node)} {node.name}"
        for path in files
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno > MAX_FUNCTION_LINES
    ]
    assert functions == [], f"more than {MAX_FUNCTION_LINES} lines"


def test_services_do_not_print() -> None:
    calls = [
        where(path, node)
        for path in python_files("services")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_nothing_is_left_to_do_in_the_code() -> None:
    marker = re.compile("#.*" + r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in OURS
        for path in python_files(folder)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marker.search(line)
    ]
    assert found == []


def test_no_test_is_skipped() -> None:
    skips = [
        where(path, node)
        for path in python_files("tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("skip", "skipif", "xfail", "importorskip")
    ]
    assert skips == []
