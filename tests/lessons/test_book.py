"""The book in a real browser: figures visible, no error, links that lead somewhere, formulas drawn, a phone, the dark.

With BOOK=FOLDER in the environment the whole book that lies there is looked at, as in .ci/run; without it the pages of
prose and one lesson are built for the occasion. What needs Chromium is skipped where there is none.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

book = pytest.importorskip("book")
for tool in ("jupytext", "nbconvert", "nbclient", "ipykernel", "latex2mathml", "matplotlib"):
    pytest.importorskip(tool)

ONE = "01"  # the lesson that is built here: a quick one, with formulas and a figure
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Put into a copy of a page; tells the page around it what it sees.
LOOK = """<script>addEventListener('load', async () => {
  const all = [...document.images], report = {page: PAGE, dark: matchMedia('(prefers-color-scheme: dark)').matches};
  await Promise.all(all.map(image => image.decode().catch(() => 0)));
  report.images = all.map(i => ({alt: i.alt, width: i.naturalWidth, shown: i.getBoundingClientRect().width}));
  report.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  report.formulas = [...document.querySelectorAll('math')].map(m => [getComputedStyle(m).display,
    m.getBoundingClientRect().height]);
  report.scripts = document.scripts.length - 1;
  const grey = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    const part = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return {a, light: 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b)}; };
  const behind = e => { for (; e; e = e.parentElement) { const found = grey(getComputedStyle(e).backgroundColor);
    if (found.a == 1) return found.light; } return grey('rgb(255, 255, 255)').light; };
  report.contrast = [9, ''];
  for (const e of document.body.querySelectorAll('*')) {
    const text = [...e.childNodes].filter(n => n.nodeType == 3).map(n => n.data.trim()).join('');
    if (!text) continue;
    const pair = [grey(getComputedStyle(e).color).light, behind(e)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < report.contrast[0]) report.contrast = [ratio, text.slice(0, 40)];
  }
  parent.postMessage(report, '*');
});</script>"""
AROUND = """<!doctype html><title>reports</title><pre id="found"></pre><script>
addEventListener('message', event => { found.textContent += JSON.stringify(event.data) + '\\n'; });</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the pages."""
    if "BOOK" in os.environ:
        return Path(os.environ["BOOK"])
    out = tmp_path_factory.mktemp("book")
    os.environ["LESSON_RUNS"] = str(out / "figures")
    try:
        book.build(out, [ONE])
    finally:
        del os.environ["LESSON_RUNS"]
    return out


@pytest.fixture(scope="module")
def pages(folder: Path) -> dict[str, str]:
    """Each page by name."""
    return {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.html"))}


def test_there_is_a_page_and_a_notebook_of_every_lesson(folder: Path, pages: dict[str, str]) -> None:
    built = [script.stem for script in book.lessons() if "BOOK" in os.environ or script.stem.startswith(ONE)]
    assert set(pages) == {"index.html", "notation.html", "glossary.html", *(f"{stem}.html" for stem in built)}
    for stem in built:
        notebook = json.loads((folder / f"{stem}.ipynb").read_text("utf-8"))
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"], stem
        assert any("image/png" in o.get("data", {}) for o in outputs), stem


def test_every_link_leads_somewhere(folder: Path, pages: dict[str, str]) -> None:
    for name, text in pages.items():
        for target in re.findall(r'href="([^"]*)"', text):
            if re.match("data:|https?:", target):
                continue
            file, _, place = html.unescape(unquote(target)).partition("#")
            found = folder / (file or name)
            if "BOOK" not in os.environ and re.match(r"\d\d_\w+\.html", file):
                continue  # a lesson that was not built here
            assert found.exists(), f"{name}: {target}"
            if place:
                assert f'id="{place}"' in html.unescape(found.read_text("utf-8")), f"{name}: {target}"


def test_nothing_is_loaded_from_elsewhere_and_no_formula_is_left(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        assert not re.search(r"<script|<link[^>]+href=\"http|src=\"http|@import|url\(", text), name
        visible = re.sub(r"<(pre|code|style|annotation)\b.*?</\1>|<img[^>]*>", "", text, flags=re.DOTALL)
        assert not re.search(r"\$|\\frac|\\sqrt|\\text", visible), name
        assert len(re.findall("<h1", text)) == 1, name
    assert any("<math" in text for text in pages.values())


def test_a_formula_becomes_mathml_and_code_stays() -> None:
    text = book.formulas(r"<p>$\sqrt{D}$ &lt; $$a &lt; b$$ <code>$x$</code></p><pre>$HOME $PATH</pre>")
    assert "<msqrt>" in text
    assert 'display="block"' in text
    assert "<code>$x$</code></p><pre>$HOME $PATH</pre>" in text
    for wrong in (r"$\left( a$", r"$\nosuch a$"):
        with pytest.raises(ValueError, match=r"the formula .* cannot be read"):
            book.formulas(wrong)


def test_links_go_to_pages_and_files(tmp_path: Path) -> None:
    assert book.link("glossary.md#rms", tmp_path) == "glossary.html#rms"
    assert book.link("01_tape.py", tmp_path) == "01_tape.html"
    assert book.link("README.md", tmp_path) == "index.html"
    assert (tmp_path / book.link("../README.md", tmp_path)).resolve() == book.ROOT / "README.md"
    assert book.link("https://arxiv.org/abs/2407.17465", tmp_path) == "https://arxiv.org/abs/2407.17465"
    with pytest.raises(ValueError, match=r"a link leads to gone\.md"):
        book.link("gone.md", tmp_path)


def test_headings_have_the_ids_that_github_gives() -> None:
    assert book.anchors('<h3 id="X">u-µP and <em>FP8</em><a class="anchor-link" href="#X">¶</a></h3>') == (
        '<h3 id="u-µp-and-fp8">u-µP and <em>FP8</em></h3>'
    )


def test_a_lesson_whose_claim_fails_stops_the_book(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    script = tmp_path / "00_wrong.py"
    script.write_text('# %%\nimport lesson\n\nlesson.claim("one", 2, 1, within=0)\n', "utf-8")
    with pytest.raises(CellExecutionError, match="one: measured 2, expected 1 exactly"):
        book.execute(script)


def test_an_unknown_lesson_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        book.main(["77", "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "there is no lesson 77" in capsys.readouterr().err


def seen(pages: dict[str, str], folder: Path, width: int, *, dark: bool) -> list[dict[str, Any]]:
    """What Chromium reports of every page, in a window of that width, without a network."""
    frames = []
    for name, text in pages.items():
        look = LOOK.replace("PAGE", json.dumps(name))
        (folder / name).write_text(text.replace("</body>", f"{look}</body>"), "utf-8")
        frames.append(f'<iframe src="{name}" width="{width}" height="900"></iframe>')
    around = folder / "around.html"
    around.write_text(AROUND + "".join(frames), "utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-extensions", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=30000", "--dump-dom",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", around.as_uri(),
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:]
    return [json.loads(line) for line in html.unescape(found[1]).splitlines() if line]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (375, True)], ids=["desktop", "phone in the dark"])
def test_a_browser_shows_everything(pages: dict[str, str], tmp_path: Path, width: int, dark: bool) -> None:
    reports = seen(pages, tmp_path, width, dark=dark)
    assert sorted(report["page"] for report in reports) == sorted(pages)
    for report in reports:
        page = report["page"]
        assert report["dark"] == dark, page
        assert report["scripts"] == 0, page
        assert report["wide"] <= 0, f"{page} is {report['wide']} pixels too wide for {width}"
        for image in report["images"]:
            assert image["width"] > 300, page
            assert 0 < image["shown"] <= width, page
            assert len(image["alt"]) > 30, f"{page}: a figure needs a caption"
        assert all("math" in display and height > 0 for display, height in report["formulas"]), page
        ratio, text = report["contrast"]
        assert ratio >= 4.5, f"{page}: contrast {ratio:.1f} of {text!r}"  # WCAG AA
    by_page = {report["page"]: report for report in reports}
    for name in pages:
        if re.match(r"\d\d_", name):
            assert by_page[name]["images"], f"{name} shows no figure"
    assert any(report["formulas"] for report in reports)
