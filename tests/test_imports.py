"""Imports point one way: what is read first never imports what is read later."""

import ast
from pathlib import Path

import pytest

import microumup

BOOK = (
    "backend", "engine", "fp8", "ops", "multipliers", "parametrization", "model", "optim", "data", "checkpoint", "train"
)  # fmt: skip


def book_before(name):
    return set(BOOK[: BOOK.index(name)])


# What each module, or package within the package, may import: a new one goes in here.
ALLOWED = {name: book_before(name) for name in BOOK}
ALLOWED["threads"] = set()
ALLOWED["fused"] = book_before("multipliers")
ALLOWED["optim"] |= {"threads"}
ALLOWED["corpora"] = {"backend"}
ALLOWED["data"] |= {"corpora"}
ALLOWED["cli"] = book_before("optim")
ALLOWED["generate"] = book_before("train") | {"cli"}
ALLOWED["ranges"] = book_before("train") | {"fused"}
ALLOWED["train"] |= {"cli", "fused", "generate", "ranges", "threads"}
EVERYTHING = {*ALLOWED, "lab", "interop"}
ALLOWED |= dict.fromkeys(("lab", "interop", "__main__"), EVERYTHING)
ALLOWED["__init__"] = set()  # the version alone, so anyone may import it


def imports(path, package):
    """Every import in a file, those inside functions and import_module("…") too: its line, and the full dotted name."""
    inside = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) + 1 - node.level] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*above, *([node.module] if node.module else []), alias.name])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def bad_edges(package):
    """A line for every import that points the wrong way."""
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        importer = relative.parts[0].removesuffix(".py")
        if importer not in ALLOWED:
            found.append(f"{relative}: has no place in the order; give it one in {Path(__file__).name}")
            continue
        for line, name in imports(path, package):
            root, _, rest = name.partition(".")
            if root in ("cupy", "cupyx") and importer != "backend":
                found.append(f"{relative}:{line} imports {root}; only backend may")
            target = rest.partition(".")[0]
            if not (package / target).is_dir() and not (package / f"{target}.py").exists():
                target = "__init__"  # a name in the package itself, as __version__
            if root == package.name and target not in ALLOWED[importer] | {importer, "__init__"}:
                found.append(f"{relative}:{line} imports {target}, which comes later")
    return found


def test_every_import_points_back():
    assert bad_edges(Path(microumup.__file__).parent) == []


GOOD = {
    "backend.py": "import importlib\nimport numpy\n\ndef f():\n    importlib.import_module('cupy')\n",
    "engine.py": "from microumup.backend import Array",
    "fp8.py": "",
    "ops.py": "from microumup import __version__, backend, engine",
    "multipliers.py": "from .ops import Scale",
    "model.py": "import microumup.ops as ops\nfrom . import multipliers",
    "checkpoint.py": "",
    "cli.py": "from microumup.model import ModelConfig",
    "generate.py": "from microumup import checkpoint, cli",
    "train.py": "from microumup.generate import generate",
    "__init__.py": "__version__ = '0'",
    "__main__.py": "from importlib import import_module\nimport_module('microumup.train')",
    "lab/__init__.py": "",
    "lab/bench.py": "from microumup import fused\nfrom ..train import train\nfrom .figures import draw",
    "lab/figures.py": "from . import bench",
    "fused.py": "from microumup import ops",
}


@pytest.fixture
def package(tmp_path):
    """A made-up microumup in which every import is fine."""
    package = tmp_path / "microumup"
    for name, source in GOOD.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    return package


def test_imports_that_point_back_are_fine(package):
    assert bad_edges(package) == []


BAD = [
    ("engine.py", "from microumup.ops import linear", "engine.py:1 imports ops, which comes later"),
    ("engine.py", "from microumup import backend, ops", "engine.py:1 imports ops, which comes later"),
    ("engine.py", "import microumup.ops", "engine.py:1 imports ops, which comes later"),
    ("engine.py", "from . import ops", "engine.py:1 imports ops, which comes later"),
    ("engine.py", "def f():\n    from .ops import linear", "engine.py:2 imports ops, which comes later"),
    ("engine.py", "__import__('microumup.ops')", "engine.py:1 imports ops, which comes later"),
    ("ops.py", "from microumup.lab.bench import main", "ops.py:1 imports lab, which comes later"),
    ("ops.py", "from microumup import fused", "ops.py:1 imports fused, which comes later"),
    ("cli.py", "from microumup import checkpoint", "cli.py:1 imports checkpoint, which comes later"),
    ("generate.py", "from microumup.train import Trainer", "generate.py:1 imports train, which comes later"),
    ("__init__.py", "from microumup.ops import linear", "__init__.py:1 imports ops, which comes later"),
    ("lab/bench.py", "from microumup.__main__ import main", "lab/bench.py:1 imports __main__, which comes later"),
    ("lab/bench.py", "from ..__main__ import main", "lab/bench.py:1 imports __main__, which comes later"),
    ("lab/bench.py", "import cupy as xp", "lab/bench.py:1 imports cupy; only backend may"),
    ("ops.py", "from cupy.linalg import norm", "ops.py:1 imports cupy; only backend may"),
    ("ops.py", "import importlib\nimportlib.import_module('cupyx')", "ops.py:2 imports cupyx; only backend may"),
    ("extra.py", "", "extra.py: has no place in the order; give it one in test_imports.py"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "complaint"), BAD)
def test_an_import_that_points_the_wrong_way_is_named(package, name, source, complaint):
    (package / name).write_text(source)
    assert bad_edges(package) == [complaint]
