"""Text without a network: the English documentation that is on this machine."""

import ast
import importlib.metadata
import importlib.util
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

# Dependencies whose docstrings are prose. Not taken: plotly (generated, ten sentences in a thousand
# variations), sympy (formulas), torch (half of the time to parse for a quarter of the text).
PACKAGES = ("networkx", "scipy", "pandas", "numpy", "sqlalchemy", "matplotlib")
SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "site-packages", "lib2to3", "_vendor"})
SHORTEST_DOCSTRING = 80  # characters; below, it is a label, not a sentence
LEAST_PROSE = 0.75  # share of letters and single spaces; tables and formulas are below

_Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def embedded_documents() -> Iterator[str]:
    """English documentation that is on this machine: one document a module or language topic.

    Read from source text, without importing anything, in a fixed order; a docstring seen before
    and one that is mostly not prose are left out, as is a file that does not parse. The result
    depends on the versions in `embedded_versions` alone.
    """
    yield from (topics[name].strip() for name in sorted(topics))
    seen: set[str] = set()
    for root in (Path(sysconfig.get_path("stdlib")), *_package_folders().values()):
        for path in sorted(root.rglob("*.py")):
            if _skipped(path.relative_to(root)):
                continue
            kept = [text for text in _docstrings(path) if _is_prose(text) and text not in seen]
            seen.update(kept)
            if kept:
                yield "\n\n".join(dict.fromkeys(kept))


def embedded_versions() -> dict[str, str]:
    """What decides the embedded text: the versions of Python and of each package read."""
    versions = {name: importlib.metadata.version(name) for name in _package_folders()}
    return {"python": platform.python_version(), **versions}


def _package_folders() -> dict[str, Path]:
    """The source folder of each package that is installed."""
    specs = ((name, importlib.util.find_spec(name)) for name in PACKAGES)
    return {name: Path(spec.origin).parent for name, spec in specs if spec and spec.origin}


def _skipped(relative: Path) -> bool:
    return any(part in SKIPPED_FOLDERS or part.startswith("test_") for part in relative.parts)


def _docstrings(path: Path) -> list[str]:
    """A file's docstrings from top to bottom; none if it cannot be read or parsed."""
    try:
        source = path.read_text(encoding="utf-8")
        if '"""' not in source:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # other people's escape sequences
            tree = ast.parse(source)
    except (OSError, UnicodeDecodeError, SyntaxError):  # a file like lib2to3's bad examples
        return []
    return list(_walk(tree))


def _walk(scope: _Scope) -> Iterator[str]:
    """The docstrings of a scope and of the scopes defined directly in it (10x `ast.walk`)."""
    text = ast.get_docstring(scope)
    if text is not None:
        yield text
    for statement in scope.body:
        if isinstance(statement, _Scope):
            yield from _walk(statement)


def _is_prose(text: str) -> bool:
    if len(text) < SHORTEST_DOCSTRING:
        return False
    letters = sum(map(str.isalpha, text)) + text.count(" ") - text.count("  ")
    return letters >= LEAST_PROSE * len(text)
