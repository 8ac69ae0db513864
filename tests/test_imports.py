"""Imports point one way: what is read first never imports what is read later."""

import ast
from pathlib import Path

import pytest

import microumup
from microumup import APPENDICES, CHAPTERS

# May import the whole book, and each other but for __main__. The package itself hands out interop.reference, lazily.
AROUND = ("lab", "interop", "__main__", "__init__")


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


def edges(package):
    """(file, line, importing module, imported module) of every import within the package."""
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        for line, name in imports(path, package):
            root, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if root == package.name and ((package / target).is_dir() or (package / f"{target}.py").exists()):
                yield relative, line, relative.parts[0].removesuffix(".py"), target


def bad_edges(package):
    """A line for every import that points the wrong way."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).parts[0].removesuffix(".py")
        if module not in (*CHAPTERS, *APPENDICES, *AROUND):
            found.append(f"{path.relative_to(package)}: is neither a chapter nor an appendix; list it in __init__.py")
        for line, name in imports(path, package):
            if name.partition(".")[0] in ("cupy", "cupyx") and module != "backend":
                found.append(f"{path.relative_to(package)}:{line} imports {name.partition('.')[0]}; only backend may")
    graph = {}
    for _, _, module, target in edges(package):
        graph.setdefault(module, set()).add(target)

    def read(appendix, seen=()):
        """The chapters that an appendix reads, itself or through others."""
        targets = graph.get(appendix, set())
        below = [read(t, (*seen, appendix)) for t in targets if t in APPENDICES and t not in (*seen, appendix)]
        return {t for t in targets if t in CHAPTERS}.union(*below)

    for relative, line, module, target in edges(package):
        if module == target:
            continue
        before = CHAPTERS[: CHAPTERS.index(module)] if module in CHAPTERS else CHAPTERS
        if target in AROUND:
            wrong = module not in AROUND or target == "__main__"
        elif target in CHAPTERS:
            wrong = target not in before
        else:
            wrong = module in CHAPTERS and not read(target) <= set(before)
        if wrong:
            found.append(f"{relative}:{line} imports {target}, which comes later")
    return found


def test_every_import_points_back():
    assert bad_edges(Path(microumup.__file__).parent) == []


def test_every_chapter_and_appendix_exists():
    here = {path.stem for path in Path(microumup.__file__).parent.glob("*.py")}
    assert here == {*CHAPTERS, *APPENDICES, "__init__", "__main__"}


GOOD = {
    "backend.py": "import importlib\nimport numpy\n\ndef f():\n    importlib.import_module('cupy')\n",
    "engine.py": "from microumup.backend import Array",
    "cpu.py": "from microumup.backend import Array",
    "fp8.py": "from microumup.cpu import blocks",
    "ops.py": "from microumup import __version__, backend, engine",
    "multipliers.py": "from .ops import Scale",
    "config.py": "from microumup.fp8 import E4M3",
    "model.py": "import microumup.ops as ops\nfrom . import multipliers",
    "checkpoint.py": "",
    "cli.py": "from microumup.config import ModelConfig",
    "generate.py": "from microumup import checkpoint, cli",
    "train.py": "from microumup.generate import generate",
    "__init__.py": "__version__ = '0'",
    "__main__.py": "from importlib import import_module\nimport_module('microumup.train')",
    "lab/__init__.py": "",
    "lab/bench.py": "from microumup import fused\nfrom ..train import train\nfrom .figures import draw",
    "lab/figures.py": "from . import bench",
    "fused.py": "from microumup import ops",
    "trainer.py": "from microumup import fused",
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
    ("fp8.py", "from microumup import cli", "fp8.py:1 imports cli, which comes later"),
    ("cpu.py", "from microumup import ops", "fp8.py:1 imports cpu, which comes later"),
    ("cpu.py", "from microumup import fused", "fp8.py:1 imports cpu, which comes later"),
    ("checkpoint.py", "from microumup.lab import bench", "checkpoint.py:1 imports lab, which comes later"),
    ("lab/bench.py", "from microumup.__main__ import main", "lab/bench.py:1 imports __main__, which comes later"),
    ("lab/bench.py", "from ..__main__ import main", "lab/bench.py:1 imports __main__, which comes later"),
    ("lab/bench.py", "import cupy as xp", "lab/bench.py:1 imports cupy; only backend may"),
    ("ops.py", "from cupy.linalg import norm", "ops.py:1 imports cupy; only backend may"),
    ("ops.py", "import importlib\nimportlib.import_module('cupyx')", "ops.py:2 imports cupyx; only backend may"),
    ("extra.py", "", "extra.py: is neither a chapter nor an appendix; list it in __init__.py"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "complaint"), BAD)
def test_an_import_that_points_the_wrong_way_is_named(package, name, source, complaint):
    (package / name).write_text(source)
    assert bad_edges(package) == [complaint]
