"""The published account: a page with every figure, what it means, and its claims with verdicts.

Words are here, numbers come from each figure's JSON, so that none can be older than its run.
"""

import json
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

from microumup import checkpoint
from microumup.lab.claims import FAILS, NOT_JUDGED, PARTLY, amount

INTRODUCTION = """# Results

Every figure of the [u-µP paper](https://arxiv.org/abs/2407.17465), and the rules behind them, run at the scale of a
laptop, drawn, and judged in numbers. `microumup figures all` makes this page; `--redraw` makes it anew from the tables
beside the pictures. A model here has two layers of width 32 to 256 and reads State of the Union addresses byte by byte,
512 steps of 16 sequences of 32; the paper's has four layers of width 256 to 4096 and reads WikiText-103 in 32,000
tokens. So the question is whether the paper's effects, not its losses, show.

A claim *holds* when its estimate and the whole 95 % interval over seeds satisfy the criterion, *holds partly* when only
the estimate does, or when it has several parts and not all hold. What has no criterion is *reported*. Losses are final
training losses in nats per byte, as in the paper; a difference of learning rates is in octaves, factors of two.
"""

DIFFERENCES = """## What differs from the paper

* The scale, above all: see the first paragraph. Steps, batch and depth are varied over the same factors around it.
* µP's base width is 32, that of the smallest model, where the paper's is its proxy's, 256; Fig. 1 has both. A larger
  base makes µP's defaults worse at small width, and the best learning rate lower by as many octaves.
* In Figs. 10 and 11 and in the search the other hyperparameters are at their defaults and the learning rate at its
  typical best, with fewer runs than the paper's 339 per search.
* What has a misprint in the paper is run as corrected: eq. (22), and Table 6's ranges, which are shifted by one row.
"""

PROSE = {
    "fig1-left": """Hyperparameters found on a small model are of use on a large one only if the optimum stays where
it is. Each curve is a width, its optimum marked. The paper says that in the standard parametrization the best
learning rate shrinks as the width grows, so that the one found at the smallest width is far too large later, and that
in µP and u-µP one value serves all. The last rows compare their losses, everything but the learning rate at its
default.""",
    "fig1-right": """The same runs in float32 and with every linear's three operands rounded to FP8, nothing scaled. A
line is a seed. u-µP's tensors start where FP8 has its numbers. µP's gradients start below the smallest of them, and
what is below becomes zero: the last rows say how much of them.""",
    "fig2-left": """µP says that the embedding's learning rate needs no scaling with width. If so, the best factor on
it would be the same at both widths. The paper saw it shrink, which is why u-µP scales it by 1/√width.""",
    "fig2-right": """How much of a search is needed? First the learning rate alone, then every other hyperparameter
alone, then the best of each together. The marker is that combination: of hyperparameters that do not depend on each
other it would lie at the end of its curve or below. Dashed: the best of as many random draws, on average.""",
    "fig3": """Each point is the RMS of an input x, a weight w or a gradient dy of one linear; lines are the limits of
the FP8 formats. u-µP starts near 1 by construction. What has to be seen is that training does not move it out of
E4M3's range.""",
    "fig4": """The same sweep as in Fig. 2 (left), of u-µP: without its rule, when the best factor should shrink with
width as in µP, and with it, when it should stay.""",
    "fig5": """What the rule for the embedding is worth. It need not change where the best global learning rate is;
the question is by how much the loss there is higher without it.""",
    "fig6": """What µTransfer promises for width is only hoped for in these three. Each panel has the same vertical
range for µP and u-µP. Over depth the drift is reported without a criterion: the depth rule is known to correct too
much in models as shallow as these.""",
    "fig7": """Why µP fails, shown by mending it. Summing the loss over the batch instead of averaging multiplies all
gradients by the number of tokens; Adam does not see it, but FP8 does. The other rows ask whether more range for the
gradients alone, E5M2, would do, and whether u-µP needs the exception that the paper makes, E5M2 for two inputs.""",
    "fig8": """The tensors of Fig. 3 along training. Many inputs cannot grow, since an RMSNorm stands before them. The
paper names those that do: the decoder's weight, and the inputs of the last projections.""",
    "fig9": """u-µP in FP8 with one thing varied at a time: the loss above, the end RMS of three tensors below; a
vertical line is the default. If only the learning rate moves them, a format that fits one model fits its relatives.
An octave or more counts as moved.""",
    "fig10": """Loss over every pair of µP's hyperparameters. Where two do the same thing the optimum is a diagonal
valley: the best value of one depends on the other, and searching them one by one goes astray. The number is the
paper's: what it costs to take the optimum of another row or column.""",
    "fig11": """The same for u-µP's hyperparameters, which were chosen so that each controls a scale of its own. To be
compared with Fig. 10, intervals included.""",
    "table1": """No training: init, multiplier and step of every type of weight, measured on models of several sizes,
are the points; the paper's Table 1 are the lines.""",
    "table4": """No training: what every op makes of inputs and gradients of RMS 1. Circles are what the rules imply;
most are at 1, and those that are not are known exactly. On the right all tensors of a new model, where these add
up.""",
    "lemma-c1": """No training: a pre-norm network can be rescaled so that its trunk keeps scale 1 and its output does
not change. Measured on random networks, with τ as worked out from eq. (12) and with the closed form that eq. (22)
prints.""",
    "eq22": """No training: the ratio of the branches' scale to the embedding's, which at α_res = 1 should be 1 at
every depth.""",
}


def write(out: Path, names: Sequence[str]) -> Path:
    """Write results.md from the JSONs of those figures that are in `out`: into it, or beside it if its name is figures.

    The page's path.
    """
    page = (out.parent if out.name == "figures" else out) / "results.md"
    found = [json.loads(path.read_text()) for name in names if (path := out / f"{name}.json").exists()]
    links = relpath(out, page.parent)
    sections = [INTRODUCTION, made(found), overview(found), *(section(result, links) for result in found)]
    content = "\n".join([*sections, shortfalls(found), DIFFERENCES])
    checkpoint.write_atomically(page, lambda temporary: temporary.write_text(content))
    return page


def made(results: Sequence[dict[str, Any]]) -> str:
    """With what the runs were made."""
    seconds = sum(result["made"].get("cpu_seconds", 0) for result in results)
    sessions = {json.dumps(s): s for result in results for s in result["made"].get("sessions", ())}
    lines = [
        f"The runs took {seconds / 3600:.1f} CPU-hours, with those that two figures share counted for both. Made by:\n"
    ]
    for s in sessions.values():
        commit = (s["commit"] or "unknown").replace("-dirty", " and changes")
        code = f"microumup {s['microumup']}, commit {commit}, Python {s['python']}, NumPy {s['numpy']}"
        lines.append(f"* {code}; {s['machine']}; {s['date'][:10]}")
    return "\n".join(lines) + "\n"


def overview(results: Sequence[dict[str, Any]]) -> str:
    """A table of all figures."""
    lines = ["| figure | what the paper shows | here | command |", "|---|---|---|---|"]
    for r in results:
        lines.append(
            f"| [{r['name']}](#{r['name']}) | {r['shows']} | {r['verdict']} | `microumup figures {r['name']}` |"
        )
    return "\n".join(lines) + "\n"


def section(result: dict[str, Any], links: str) -> str:
    """A figure: its picture, what it means, and its claims."""
    name = result["name"]
    lines = [f"## {name}", "", f"![{result['title']}]({links}/{name}.png)", "", PROSE[name], ""]
    lines += ["| claim | measured | 95 % interval | paper | asked | verdict |", "|---|---|---|---|---|---|"]
    for c in result["claims"]:
        value, low, high = (amount(c[key], c["unit"]) for key in ("effect", "low", "high"))
        if c["low"] is None:
            interval = "" if c["effect"] is None else "one seed"
        else:
            interval = f"{low} to {high}" if c["low"] < c["high"] else "exact"
        cells = (c["claim"], f"{value} {c['unit']}".strip(), interval, c["paper"], c["criterion"], c["verdict"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    tables = ", ".join(f"[{file}]({links}/{file})" for file in result["files"] if file.endswith(".csv"))
    return "\n".join([*lines, "", f"{tables}; `microumup figures {name}`", ""])


def shortfalls(results: Sequence[dict[str, Any]]) -> str:
    """Every claim that does not hold, or only partly."""
    lines = ["## What does not show at this scale", ""]
    for result in results:
        for c in result["claims"]:
            if c["verdict"] in (FAILS, PARTLY, NOT_JUDGED):
                value = f"{amount(c['effect'], c['unit'])} {c['unit']}".strip()
                lines.append(f"* {result['name']}, {c['verdict']}: {c['claim']} {value}, asked {c['criterion']}")
    return "\n".join(lines if len(lines) > 2 else [*lines, "Everything that is claimed above holds."]) + "\n"
