"""The published account, results.md: every figure, what it means, and its claims with verdicts.

Words are here and with the figures, numbers come from each figure's JSON, so that none can be older than its run.
"""

import json
from collections import Counter
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path

from microumup import files
from microumup.lab.figures.figure import Figure
from microumup.lab.figures.judging import FAILS, HOLDS, PARTLY, REPORTED, UNDECIDED, amount, measured
from microumup.lab.figures.rows import Row

INTRODUCTION = """# Results

Every figure of the [u-µP paper](https://arxiv.org/abs/2407.17465), and the rules behind them, run at the scale of a
laptop, drawn, and judged in numbers. `microumup figures all --docs` makes this page; `--redraw` makes it anew from the
tables beside the pictures. A model here has two layers of width 32 to 256 and reads State of the Union addresses byte
by byte, 512 steps of 16 sequences of 32; the paper's has four layers of width 256 to 4096 and reads WikiText-103 in
32,000 tokens. So the question is whether the paper's effects, not its losses, show.

A claim *holds* when its estimate and the whole 95 % interval over seeds satisfy the criterion, and *does not hold* when
nothing in the interval does. In between, an estimate that satisfies it with an interval that reaches beyond *holds
partly*; but it is *undecided* if the interval contains the opposite too (an effect of the other sign where a sign is
asked, one that is too large to either side where a small one is asked), and where an estimate misses what its interval
reaches. What has no criterion is *reported*. A figure of which only some claims hold *holds partly*. All effects are
differences within a seed, which gives both sides the same batches and the same initial draws; intervals are over these.
Losses are final training losses in nats per byte, as in the paper; a difference of learning rates is in octaves,
factors of two.
"""

CHANGES = """## What was changed about the verdicts, and why

Before 25 November 2026 nearly every claim had three seeds. Of 80 with a criterion 48 held, 12 held partly, 6 were
undecided and 14 did not hold, 9 of these with an interval that reached what was asked: 27 were not decided. No claim
was dropped, four were added, and seven with the figure adam-eps. Each change has a reason that does not depend on
what came out:

* **Failing is judged like holding.** A claim fails when nothing in its interval satisfies the criterion; before, when
  the estimate did not, whatever the interval said. Those 9 verdicts became *undecided*, Fig. 4's among them.
* **Places of optima by five points.** In a flat basin chance decides which point is the lowest, and a parabola through
  it and its neighbours follows. Now it is a least-squares parabola through up to two points to either side. Over the
  same runs the spread of a drift over seeds is smaller in 12 of 14 sweeps, by half in the median. Losses are read as
  before: their spread gains nothing by it.
* **More seeds, where an estimate of power says that they decide** in four cases of five, from the spread over the
  seeds that there were. How many was planned before any of them was run, and no plan was changed for what came out; for
  one there was no time yet, and those that take hours were not planned. The table has the claims that three seeds (of
  Fig. 2 five), by the rules above, did not decide.
* **Old rows stay.** They are of older commits, whose sums round otherwise. Of eleven runs made again losses differ by
  1e-8 to 5e-3 nats, and by 0.02 at two learning rates beyond the basin; within a seed both sides are of one commit.
* **Fig. 2 (right), u-µP's lower loss after the learning rate alone**: at least 0, where 0.03 was asked. The paper says
  *below*, as it does of Figs. 1 and 6, where 0 has been asked all along.
* **Fig. 6, losses of the deepest models**: at least 0, where 0.02 was asked, for the same reason.
* **Fig. 6, drifts**: the paper compares ("similar to or better than µP"), and nothing judged that. Three claims were
  added, one for each axis: u-µP's optimum moves further than µP's by at most 0.5 octaves, the spacing of the paper's
  grid. The bound of ±1.25 on each scheme's own drift is ours; its four claims stay.
* **Fig. 8**: the paper says that the inputs of the o and down projections grow, in every layer, and that those behind
  an RMSNorm do not. A claim was added that asks that. The one about the last layer's down projection stays; it came
  from reading *final projections* as those of the last layer.
* **Read again and left**: Fig. 4's ±0.5 octaves, half of what the optimum moves by without the rule; Fig. 9's octave,
  which is what counts as substantial for the learning rate too; Fig. 5's 0.025 nats, since the paper calls the loss
  there significantly degraded.

| claim | three seeds said | asked | needed | planned | made |
|---|---|---|---|---|---|
| Fig. 1: µP, base width 256, lowest loss above u-µP's at width 64 | +0.022 [-0.009, +0.053] | at least 0 | 5 | 6 | 6 |
| the same at width 128 | -0.021 [-0.043, +0.001] | at least 0 | 4 | 5 | 5 |
| the same at width 256 | -0.038, one seed | at least 0 | not known | 3 | 3 |
| the same with base width 32 at width 64 | +0.006 [-0.021, +0.034] | at least 0 | 28 | no | 3 |
| the same with base width 32 at width 128 | -0.023 [-0.071, +0.026] | at least 0 | 8 | no | 3 |
| Figs. 1, 7: u-µP in FP8, width 64, 512 steps | +0.009 [-0.030, +0.048] | at most 0.04 | 5 | 6 | 6 |
| Fig. 2: u-µP, combining the best of each line search costs | +0.006 [-0.013, +0.025] | at most 0.02 | 12 | 12 | 5 |
| Fig. 2: combining costs µP more | +0.003 [-0.019, +0.024] | at least 0 | 337 | no | 5 |
| Fig. 3: largest RMS at init | +1.90 [+1.53, +2.26] | at most 2 | 19 | 25 | 25 |
| Fig. 4: the best η̂_emb moves by | +0.58 [-0.63, +1.80] | within ±0.5 | 288 | no | 3 |
| Fig. 5: without the rule, width 64 | +0.037 [-0.000, +0.075] | at least 0.025 | 14 | no | 3 |
| Fig. 6: drift of µP over batch | +1.09 [+0.72, +1.46] | within ±1.25 | 9 | 9 | 9 |
| Fig. 6: drift of u-µP over batch | +1.15 [+0.55, +1.75] | within ±1.25 | 51 | no | 9, made for the next |
| Fig. 6: drift of u-µP beyond µP's over batch | +0.06 [-0.74, +0.86] | at most 0.5 | 7 | 9 | 9 |
| Fig. 6: lowest loss after 128 steps | +0.063 [-0.013, +0.139] | at least 0 | 4 | 8 | 8 |
| Fig. 6: lowest loss of 8 layers | +0.024 [-0.019, +0.068] | at least 0 | 6 | 6 | 6 |
| Fig. 7: µP in FP8, width 64, 128 steps | +2.20 [+0.82, +3.59] | at least 1 | 4 | 6 | 6 |
| Fig. 8: last layer's down grows more than any other input | -0.41 [-0.94, +0.13] | at least 0 | 5 | 10 | 10 |
| Fig. 9: width moves an RMS by up to | +0.81 [+0.50, +1.13] | at most 1 | 6 | 6 | 6 |
| Fig. 9: layers | +1.35 [+0.64, +2.06] | at most 1 | 8 | 8 | 8 |
| Fig. 9: batch size | +1.14 [+0.61, +1.66] | at most 1 | 21 | 21 | 21 |
| adam-eps: width 128, beyond what the constants say | -0.09 [-0.91, +0.73] | within ±0.5 | 7 | 7 | 7 |
"""

DIFFERENCES = """## What differs from the paper

* The scale, above all: see the first paragraph. Steps, batch and depth are varied over the same factors around it.
* µP's base width is 32, that of the smallest model, where the paper's is its proxy's, 256; Fig. 1 has both. A larger
  base makes µP's defaults worse at small width, and the best learning rate lower by as many octaves.
* In Figs. 10 and 11 and in the search the other hyperparameters are at their defaults and the learning rate at its
  typical best, with fewer runs than the paper's 339 per search.
* What has a misprint in the paper is run as corrected: eq. (22), and Table 6's ranges, which are shifted by one row.
"""


def write(page: Path, out: Path, figures: Sequence[Figure]) -> None:
    """Write `page` from the JSONs of those figures that are in `out`."""
    paths = {figure.name: out / f"{figure.name}.json" for figure in figures}
    results = [files.read_json(path, dict) for path in paths.values() if path.exists()]
    prose, links = {figure.name: figure.prose for figure in figures}, relpath(out, page.parent)
    sections = [section(result, prose[result["name"]], links) for result in results]
    parts = [INTRODUCTION, made(results), counts(results), overview(results), *sections, shortfalls(results)]
    content = "\n".join([*parts, CHANGES, DIFFERENCES])
    files.write_atomically(page, lambda temporary: temporary.write_text(content, encoding="utf-8"))


def made(results: Sequence[Row]) -> str:
    """Say by what the runs were made, and how long they took."""
    hours = sum(result["made"].get("cpu_seconds", 0) for result in results) / 3600
    sessions = {json.dumps(s): s for result in results for s in result["made"].get("sessions", ())}
    lines = [f"The runs took {hours:.1f} CPU-hours, with those that two figures share counted for both. Made by:\n"]
    for s in sessions.values():
        commit = (s["commit"] or "unknown").replace("-dirty", " and changes")
        code = f"microumup {s['microumup']}, commit {commit}, Python {s['python']}, NumPy {s['numpy']}"
        lines.append(f"* {code}; {s['machine']}; {s['date'][:10]}")
    return "\n".join(lines) + "\n"


def counts(results: Sequence[Row]) -> str:
    """Count the claims with each verdict, in a sentence."""
    count = Counter(claim["verdict"] for result in results for claim in result["claims"])
    judged = sum(count[verdict] for verdict in (HOLDS, PARTLY, UNDECIDED, FAILS))
    return (
        f"Of {judged} claims {count[HOLDS]} hold, {count[PARTLY]} hold partly, {count[UNDECIDED]} are undecided and "
        f"{count[FAILS]} do not hold at this scale; {count[REPORTED]} more numbers are reported without a criterion.\n"
    )


def overview(results: Sequence[Row]) -> str:
    """A table of all figures."""
    row = "| [{name}](#{name}) | {shows} | {verdict} | `microumup figures {name}` |"
    lines = ["| figure | what the paper shows | here | command |", "|---|---|---|---|"]
    return "\n".join([*lines, *(row.format_map(result) for result in results)]) + "\n"


def section(result: Row, prose: str, links: str) -> str:
    """A figure: its picture, what it means, and its claims."""
    name = result["name"]
    lines = [f"## {name}", "", f"![{result['title']}]({links}/{name}.png)", "", prose, ""]
    lines += ["| claim | measured | 95 % interval | seeds | paper | asked | verdict |", "|---|---|---|---|---|---|---|"]
    for c in result["claims"]:
        low, high = (amount(c[key], c["unit"]) for key in ("low", "high"))
        interval = "" if c["effect"] is None else "one seed"
        if c["low"] is not None:
            interval = f"{low} to {high}" if c["low"] < c["high"] else "exact"
        cells = (c["claim"], measured(c), interval, str(c["seeds"] or ""), c["paper"], c["criterion"], c["verdict"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    tables = ", ".join(f"[{file}]({links}/{file})" for file in result["files"] if file.endswith(".csv"))
    return "\n".join([*lines, "", f"{tables}; `microumup figures {name}`", ""])


def more(claim: Row) -> str:
    """Say of a claim that is not decided how many seeds would decide it, four times of five."""
    if claim["verdict"] == FAILS or not claim["seeds"]:
        return ""
    if claim["seeds"] == 1:
        return "; one seed"
    needed = f"about {claim['seeds_needed']}" if claim["seeds_needed"] else "more than 999"
    return f"; {claim['seeds']} seeds, to decide it {needed}"


def shortfalls(results: Sequence[Row]) -> str:
    """Every claim that does not hold, or only partly, or is not decided."""
    claims = [(result["name"], claim) for result in results for claim in result["claims"]]
    short = [(name, c) for name, c in claims if c["verdict"] not in (HOLDS, REPORTED)]
    lines = [f"* {name}, {c['verdict']}: {c['claim']} {measured(c)}, asked {c['criterion']}" for name, c in short]
    content = [line + more(c) for line, (_, c) in zip(lines, short, strict=True)]
    content = content or ["Everything that is claimed above holds."]
    return "\n".join(["## What does not show at this scale", "", *content]) + "\n"
