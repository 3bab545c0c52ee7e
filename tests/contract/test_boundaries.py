"""Who may import whom, and that a service runs with the dependencies it declares itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.contract.source import OURS, PROCESS_NAMES, ROOT, imports, python_files, where


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def violations(folder: str, allowed: tuple[str, ...]) -> list[str]:
    return [
        f"{where(path, node)} imports {module}"
        for path in python_files(folder)
        for module, node in imports(path)
        if module.split(".")[0] in OURS
        and not any(is_within(module, package) or is_within(package, module) for package in allowed)
    ]


@pytest.mark.parametrize("service", PROCESS_NAMES)
def test_a_service_imports_only_contracts_runtime_and_itself(service: str) -> None:
    assert violations(f"services/{service}", ("contracts", "services.runtime", f"services.{service}")) == []


def test_the_console_is_not_on_the_bus() -> None:
    bus = ("faststream", "nats", "contracts.subjects", "contracts.permissions")
    assert [
        where(path, node)
        for path in python_files("services/console")
        for module, node in imports(path)
        if any(is_within(module, package) for package in bus)
    ] == []


def test_the_console_loads_neither_bus_nor_database_by_way_of_others() -> None:
    unwanted = {"asyncpg", "faststream", "nats"}
    program = f"import sys, services.console.main; print(*({unwanted} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).split() == []


def test_the_runtime_imports_only_contracts() -> None:
    assert violations("services/runtime", ("contracts", "services.runtime")) == []


def test_contracts_import_nothing_of_ours() -> None:
    assert violations("contracts", ("contracts",)) == []


def test_the_sandbox_imports_nothing_of_ours() -> None:
    assert violations("deploy/sandbox", ("deploy.sandbox",)) == []


def test_nothing_outside_tests_imports_tests() -> None:
    for folder in ("contracts", "services", "deploy"):
        assert [
            where(path, node)
            for path in python_files(folder)
            for name, node in imports(path)
            if is_within(name, "tests")
        ] == []


# Dependencies ---------------------------------------------------------------------------------------------------------


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@cache
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


def declared(extra: str | None) -> set[str]:
    """Distributions that are installed with this extra, as far as `pyproject.toml` names them."""
    requirements = list(project()["dependencies"])  # type: ignore[call-overload]
    if extra:
        requirements += project()["optional-dependencies"][extra]  # type: ignore[index]
    return {normal(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def reached(start: list[Path]) -> list[Path]:
    """These files of ours and every file of ours that they import, directly or not."""
    found, waiting = set(start), list(start)
    while waiting:
        for module, _ in imports(waiting.pop()):
            file = file_of(module) if module.split(".")[0] in OURS else None
            if file is not None and file not in found:
                found.add(file)
                waiting.append(file)
    return sorted(found)


def undeclared(files: list[Path], available: set[str]) -> list[str]:
    distributions = packages_distributions()
    missing = []
    for path in files:
        for module, node in imports(path):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in OURS or top == "__future__":
                continue
            if not {normal(name) for name in distributions.get(top, [])} & available:
                missing.append(f"{where(path, node)} imports {top}")
    return sorted(set(missing))


@pytest.mark.parametrize("service", PROCESS_NAMES)
def test_a_service_declares_what_it_imports(service: str) -> None:
    files = reached(python_files(f"services/{service}"))
    advice = f"add it to the extra `{service}` of pyproject.toml, or do without"
    assert undeclared(files, declared(service)) == [], advice


def test_contracts_need_pydantic_alone() -> None:
    assert undeclared(python_files("contracts"), {"pydantic"}) == []


def test_the_local_stack_declares_what_it_imports() -> None:
    everything = set().union(*(declared(extra) for extra in ("local", *PROCESS_NAMES)))  # it runs them all
    assert undeclared(reached(python_files("deploy")), everything) == []


def test_a_dependency_of_a_dependency_is_not_declared(tmp_path: Path) -> None:
    assert "pydantic-core" not in declared("gateway")
    assert "anyio" not in declared("gateway")
    assert declared("keys") - declared(None) >= {"asyncpg", "cryptography"}


def test_relative_imports_are_resolved() -> None:
    tree = ast.parse("from ..catalog import store")
    assert isinstance(tree.body[0], ast.ImportFrom)
    assert tree.body[0].level == 2
    relative = [
        where(path, node)
        for folder in OURS
        for path in python_files(folder)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == [], "imports are absolute, so that they can be read without counting dots"
