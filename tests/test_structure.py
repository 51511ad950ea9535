"""The shape of the code is a checked fact: small files, short functions, imports downhill."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
MODULES = sorted((HERE / "src").rglob("*.py"))
MOST_LINES = 400
LONGEST_FUNCTION = 60
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path) -> str:
    return str(path.relative_to(HERE / "src"))


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_there_is_code():
    assert len(MODULES) > 40


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_has_one_job(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, "split it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_function_fits_on_a_screen(path):
    too_long = {
        node.name: lines
        for node in ast.walk(tree(path))
        if isinstance(node, FUNCTIONS)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert too_long == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_opens_with_one_sentence_for_a_stranger(path):
    text = ast.get_docstring(tree(path))
    assert text, "no docstring"
    assert re.match(r"[^\n]+(\n[^\n]+)*[.:]", text), "no sentence"


def test_imports_run_downhill_and_each_vendor_stays_in_its_adapter():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " 0 broken" in done.stdout
