"""What the package imports, it declares: pip installs no program that fails at its first import."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {
    "bs4": "beautifulsoup4",
    "faiss": "faiss-cpu",
    "pydantic_core": "pydantic",
    "pytrec_eval": "pytrec-eval-terrier",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""What is installed under another name than it is imported by, or as part of another."""


BY_OTHERS = {"onnxscript", "httptools", "uvloop"}
"""What nobody here imports, and a package that is imported takes: torch to write ONNX, uvicorn to be fast."""


def names(requirements: list[str]) -> set[str]:
    """Normalised names of the distributions that a list of requirements names."""
    found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", name[0].lower()) for name in found if name}


REQUIRED = names(PROJECT["dependencies"])
EXTRAS = {name: names(given) for name, given in PROJECT["optional-dependencies"].items() if name != "dev"}
OPTIONAL = set().union(*EXTRAS.values()) - REQUIRED


def imported(path: Path) -> set[str]:
    """Distributions that a module imports, at once or inside a function."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.append(str(node.module))
    tops = {module.partition(".")[0] for module in modules} - {"embedforge", *sys.stdlib_module_names}
    return {DISTRIBUTIONS.get(top, top.lower().replace("_", "-")) for top in tops}


IMPORTS = {
    path.relative_to(ROOT).as_posix(): imported(path)
    for path in sorted((ROOT / "src").rglob("*.py"))
    if path.name != "conftest.py"
}


@pytest.mark.parametrize("path", [path for path, found in IMPORTS.items() if found])
def test_every_import_is_declared(path: str) -> None:
    assert IMPORTS[path] - REQUIRED - OPTIONAL == set()


def test_nothing_is_declared_in_vain() -> None:
    used = set().union(*IMPORTS.values())
    assert REQUIRED - used == set()
    assert OPTIONAL - used - BY_OTHERS == set()


def test_versions_that_are_tested_are_the_ones_that_are_claimed() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tested = set(re.findall(r'"(3\.\d+)"', workflow))
    claimed = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if ":: Python :: 3." in text}
    assert tested == claimed
    assert PROJECT["requires-python"] == f">={min(claimed, key=lambda text: int(text[2:]))}"
