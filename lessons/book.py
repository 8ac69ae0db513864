"""Build the book: every lesson as a notebook and as a page, with its output and its figure. It needs no network.

    python lessons/book.py            -> runs/book/index.html, and a notebook beside every page
    python lessons/book.py 00 05      some lessons alone; the others keep the page that they have

Needs the extra `lessons`. Each lesson is executed in a kernel of its own, and none may warn. Formulas become
MathML, which browsers draw by themselves: there is no script on any page, and nothing is loaded from elsewhere.
"""

import argparse
import html
import json
import os
import re
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGES = ("README", "notation", "glossary")  # those that are only prose

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1b1b; --pale: #fafaf8; --line: #d8d8d2; --link: #00558b;
  --faint: #5c5c58; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181a; --ink: #e4e4df; --pale: #212427; --line: #3a3e42;
  --link: #7cc0f0; --faint: #a3a39d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 0 1rem 4rem; max-width: 61rem; background: var(--paper); color: var(--ink);
  font: 1.05rem/1.6 Georgia, "Liberation Serif", "DejaVu Serif", serif; overflow-wrap: break-word; }
p, ul, ol, h1, h2, h3 { max-width: 46rem; }
h1, h2, h3, nav, figcaption, th { font-family: system-ui, "Liberation Sans", "DejaVu Sans", sans-serif;
  line-height: 1.25; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; justify-content: space-between; padding: .8rem 0;
  font-size: .9rem; border-bottom: 1px solid var(--line); }
nav.end { border-bottom: 0; border-top: 1px solid var(--line); margin-top: 3rem; }
pre, code { font-family: ui-monospace, "Liberation Mono", "DejaVu Sans Mono", monospace; font-size: .84rem; }
pre { margin: .6rem 0; padding: .7rem .8rem; overflow-x: auto; line-height: 1.45; background: var(--pale); }
.highlight { background: transparent; }
.highlight pre { border-left: 3px solid var(--link); }
.output pre { border-left: 3px solid var(--line); color: var(--faint); background: transparent; max-height: 26rem; }
.output_stream pre { white-space: pre-wrap; }
.output .error pre { border-color: #d55e00; color: var(--ink); }
img { display: block; max-width: 100%; height: auto; margin: 1rem 0 .3rem; background: #ffffff; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; border: 1px solid var(--line); text-align: left; vertical-align: top; }
math[display="block"] { overflow-x: auto; max-width: 100%; padding: .3rem 0; }
"""


# ---- From script to executed notebook ----


def lessons() -> list[Path]:
    """The lessons in their order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def execute(script: Path) -> Any:
    """The notebook of a lesson with its outputs. Raises nbclient's CellExecutionError where a claim does not hold."""
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(script)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    names = {
        "LESSON_NAME": script.stem, "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }  # fmt: skip
    env = {**os.environ, **names}
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(HERE)}}, extra_arguments=["--log-level=ERROR"]
    ).execute(env=env)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        outputs, cell.outputs = cell.outputs, []
        for output in outputs:
            if output.get("name") == "stderr":
                raise ValueError(f"{script.name}: a warning, {output['text'].strip()}")
            if output.output_type == "stream" and cell.outputs and cell.outputs[-1].output_type == "stream":
                cell.outputs[-1].text += output.text  # a kernel sends what is printed in pieces
            else:
                cell.outputs.append(output)
    return notebook


# ---- From notebook to page ----


def body(notebook: Any) -> str:
    """The notebook's cells as HTML, formulas as MathML."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    text, _ = exporter.from_notebook_node(notebook)
    return formulas(anchors(text))


def prose(markdown: str) -> str:
    """Markdown as HTML, by the same tool as the cells of a lesson."""
    from nbformat.v4 import new_markdown_cell, new_notebook

    return body(new_notebook(cells=[new_markdown_cell(markdown)]))


def anchors(text: str) -> str:
    """HTML whose headings have the ids that GitHub gives them, so that the same link serves in both places."""

    def named(found: re.Match[str]) -> str:
        title = re.sub(r'<a class="anchor-link".*?</a>', "", found[2])
        words = re.sub(r"[^\w\s-]", "", html.unescape(re.sub(r"<[^>]+>", "", title))).strip().lower()
        return f'<h{found[1]} id="{words.replace(" ", "-")}">{title}</h{found[1]}>'

    return re.sub(r"<h([1-6])[^>]*>(.*?)</h\1>", named, text, flags=re.DOTALL)


def formulas(text: str) -> str:
    """HTML in which $…$ and $$…$$ are MathML. Code and output stay as they are.

    Raises ValueError, with the formula, for one that cannot be read.
    """
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        block = found[1] is not None
        latex = html.unescape(found[1] if block else found[2])
        try:
            done = str(convert(latex.strip(), display="block" if block else "inline"))
        except Exception as error:  # it has many types of its own
            raise ValueError(f"the formula {latex!r} cannot be read: {error!r}") from None
        if "\\" in done:  # a command that it does not know goes through as text
            raise ValueError(f"the formula {latex!r} cannot be read: it has a command that latex2mathml does not know")
        return done

    parts = re.split(r"(<pre.*?</pre>|<code.*?</code>|<style.*?</style>|<img.*?>)", text, flags=re.DOTALL)
    parts[::2] = [re.sub(r"\$\$(.+?)\$\$|\$([^$]+?)\$", mathml, part, flags=re.DOTALL) for part in parts[::2]]
    return "".join(parts)


def link(target: str, out: Path) -> str:
    """The target of a link in lessons/, as seen from a page in `out`: a page, or a file where it lies."""
    file, _, place = target.partition("#")
    if re.match(r"[a-z]+:", file) or not file:
        return target
    path = (HERE / file).resolve()
    if path in lessons() or (path.parent == HERE and path.stem in PAGES):
        file = page_name(path.stem)
    elif path.exists():
        file = os.path.relpath(path, out)
    else:
        raise ValueError(f"a link leads to {target}, which is not there")
    return f"{file}#{place}" if place else file


def page_name(stem: str) -> str:
    """`index.html` is made of the README, `05_residual.html` of 05_residual.py."""
    return "index.html" if stem == "README" else f"{stem}.html"


def page(title: str, content: str, out: Path, before: Path | None = None, after: Path | None = None) -> str:
    """A whole page: its head, a way back and on, and the content with its links put right."""
    from pygments.formatters import HtmlFormatter

    content = re.sub(r'href="([^"]*)"', lambda found: f'href="{link(html.unescape(found[1]), out)}"', content)
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    colours = HtmlFormatter(style="default").get_style_defs(".highlight")
    ways = [f'<a href="{page_name(before.stem)}" title="{heading(before)}">← {before.stem[:2]}</a>'] if before else []
    ways += ['<a href="index.html">All lessons</a>', '<a href="notation.html">Notation</a>',
             '<a href="glossary.html">Glossary</a>']  # fmt: skip
    ways += [f'<a href="{page_name(after.stem)}" title="{heading(after)}">{after.stem[:2]} →</a>'] if after else []
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{colours}
@media (prefers-color-scheme: dark) {{ {dark} }}
{STYLE}</style>
</head>
<body>
<nav>{" ".join(ways)}</nav>
<main>
{content}
</main>
<nav class="end">{" ".join(ways)}</nav>
</body>
</html>
"""


def heading(script: Path) -> str:
    """The first heading of a lesson or of a page of prose."""
    mark = "# # " if script.suffix == ".py" else "# "
    found = re.search(rf"^{mark}(.+)$", script.read_text("utf-8"), flags=re.MULTILINE)
    return html.escape(found[1]) if found else script.stem


# ---- The book ----


def build(out: Path, numbers: list[str]) -> dict[str, float]:
    """Write the pages; the seconds that each lesson took. Raises ValueError for an unknown lesson or a broken link."""
    import nbformat

    scripts, seconds = lessons(), {}
    unknown = set(numbers) - {script.name[:2] for script in scripts}
    if unknown:
        raise ValueError(f"there is no lesson {', '.join(sorted(unknown))}")
    out.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        source = HERE / f"{name}.md"
        content = page(heading(source), prose(source.read_text("utf-8")), out)
        (out / page_name(name)).write_text(content, "utf-8")
    for i, script in enumerate(scripts):
        if numbers and script.name[:2] not in numbers:
            continue
        began = perf_counter()
        notebook = execute(script)
        seconds[script.stem] = round(perf_counter() - began, 1)
        nbformat.write(notebook, out / f"{script.stem}.ipynb")
        before, after = (scripts[j] if 0 <= j < len(scripts) else None for j in (i - 1, i + 1))
        content = page(heading(script), body(notebook), out, before, after)
        (out / page_name(script.stem)).write_text(content, "utf-8")
        print(f"{script.stem}: {seconds[script.stem]} s", flush=True)
    return seconds


def main(argv: list[str] | None = None) -> int:
    """0 when the book is built, 1 when a lesson fails, 2 on a bad argument."""
    parser = argparse.ArgumentParser(prog="book.py", description="Build the lessons as one HTML book and as notebooks.")
    parser.add_argument("lesson", nargs="*", help="numbers, like 05 (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "book", help="folder (default: runs/book)")
    parser.add_argument("--json", action="store_true", help="print the seconds of each lesson as a last line")
    args = parser.parse_args(argv)
    try:
        from nbclient.exceptions import CellExecutionError
    except ImportError as error:
        parser.error(f"needs {error.name}: pip install -e '.[lessons]' in {ROOT}")
    try:
        seconds = build(args.out.resolve(), args.lesson)
    except CellExecutionError as error:
        print("book.py:", re.sub(r"\x1b\[[0-9;]*m", "", str(error)), file=sys.stderr)  # without its colours
        return 1
    except ValueError as error:
        parser.error(str(error))
    print(f"open {args.out / 'index.html'}")
    if args.json:
        print(json.dumps({"index": str(args.out / "index.html"), "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
