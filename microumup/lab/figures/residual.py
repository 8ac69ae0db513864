"""Is the residual rule what it is proven to be? Lemma C.1 and eq. (22) as printed, measured without training."""

from collections.abc import Callable, Iterator
from itertools import product
from math import sqrt
from typing import Any

import numpy as np

from microumup.backend import Array
from microumup.lab import pictures as pic
from microumup.lab.figures.figure import Figure
from microumup.lab.figures.judging import Claim, Criterion, claim
from microumup.lab.figures.look import caption, panels
from microumup.lab.figures.rows import Data, Rows, largest, where
from microumup.lab.statistics import exactly
from microumup.multipliers import residual_multipliers, residual_taus

EQ12, EQ22 = "eq. 12", "eq. 22 as printed"  # by which rule τ is worked out
BRANCHES, ALPHAS = (2, 4, 8, 24, 64), ((1.0, 1.0), (2.0, 0.5), (0.25, 4.0))
YLABELS = {
    "difference": "largest difference of an output",
    "ratio": r"σ(residual) / σ(embedding), at $\alpha_\mathrm{res} = 1$",
}
EQUAL, DIFFERENT, OFF = Criterion(high=1e-12), Criterion(low=0.1), Criterion(low=0.05)


def taus_as_printed(branches: int, alpha_res: float, ratio: float) -> list[float]:
    """Eq. (22), letter for letter: no squares, and L^-1/2 on τ."""
    alpha_f = alpha_res * sqrt(2 / (ratio**2 + 1))
    alpha_a = ratio * alpha_f
    taus = []
    for l in range(1, branches + 1):  # noqa: E741 - the paper's index of a branch
        k = (l - 1) // 2
        attention = alpha_a / (1 + k * alpha_a + k * alpha_f)
        ffn = alpha_f / (1 + (k + 1) * alpha_a + k * alpha_f)
        taus.append((attention if l % 2 else ffn) / sqrt(branches))
    return taus


RULES: dict[str, Callable[[int, float, float], list[float]]] = {EQ12: residual_taus, EQ22: taus_as_printed}


def lemma_c1() -> Rows:
    """Differences of the network of eqs. (9, 10) from that of eqs. (1, 2), which Lemma C.1 says it equals."""
    return [
        {"rule": rule, "branches": branches, "alpha_res": alpha, "alpha_res_attn_ratio": ratio,
         "difference": float(f"{difference(taus(branches, alpha, ratio), alpha, ratio):.3g}")}
        for (rule, taus), branches, (alpha, ratio) in product(RULES.items(), BRANCHES, ALPHAS)
    ]  # fmt: skip


def difference(taus: list[float], alpha_res: float, ratio: float) -> float:
    """The largest difference of an output of the two networks, which have scale 1, in float64.

    The blocks f_l are the same random ones, zero-homogeneous as the lemma asks; r_0 = 1 and r_l = α̂/√L.
    """

    def block(x: Array, w: Array) -> Array:
        return np.tanh(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) @ w)  # normalized first: zero-homogeneous

    rng, branches = np.random.default_rng(0), len(taus)
    alpha_f = alpha_res * sqrt(2 / (ratio**2 + 1))
    plain = scaled = rng.standard_normal((8, 32))
    variance = 1.0
    for l, (a, b) in enumerate(residual_multipliers(taus), start=1):  # noqa: E741
        w = rng.standard_normal((32, 32)) / sqrt(32)
        r = (ratio * alpha_f if l % 2 else alpha_f) / sqrt(branches)
        plain, scaled = r * block(plain, w) + plain, a * block(scaled, w) + b * scaled
        variance += r * r
    return float(np.abs(plain / sqrt(variance) - scaled).max())


def eq22() -> Rows:
    """σ(residual)/σ(embedding) at the end of the trunk, which is to be α_res = 1, by each rule."""
    rows = []
    for (rule, taus), branches in product(RULES.items(), BRANCHES):
        skip = float(np.prod([b * b for _, b in residual_multipliers(taus(branches, 1.0, 1.0))]))
        rows.append({"rule": rule, "branches": branches, "ratio": float(f"{sqrt((1 - skip) / skip):.6g}")})
    return rows


def lemma_c1_claims(data: Data) -> Iterator[Claim]:
    """Judge if the two networks are one."""
    proven, printed = ([row["difference"] for row in where(data.runs, rule=rule)] for rule in RULES)
    yield claim("with τ of eq. (12) the two networks differ by at most", exactly(max(proven)), EQUAL, "", "0")
    yield claim("with τ as eq. (22) prints it they differ by at least", exactly(min(printed)), DIFFERENT, "", "0")


def eq22_claims(data: Data) -> Iterator[Claim]:
    """Judge if α_res is what it is called."""
    proven, printed = (largest(where(data.runs, rule=rule), lambda row: abs(row["ratio"] - 1)) for rule in RULES)
    yield claim("with τ of eq. (12) σ(residual)/σ(embedding) differs from α_res = 1 by at most", proven, EQUAL, "", "0")
    yield claim("with τ as eq. (22) prints it, by up to", printed, OFF, "", "0")


def draw(data: Data) -> Any:
    """The last column over depth, by each rule; where there are several α_res, a line for each."""
    column = list(data.runs[0])[-1]
    figure, axes = panels(1, 1, 6.4, 4.2, "x")
    ax = axes[0, 0]
    styles = ({"color": pic.BLUE, "marker": "o"}, {"color": pic.VERMILION, "marker": "s", "linestyle": "--"})
    for (rule, style), (alpha, _) in product(zip(RULES, styles, strict=True), ALPHAS):
        if rows := [row for row in where(data.runs, rule=rule) if row.get("alpha_res", 1) == alpha]:
            label = f"τ of {rule}" if alpha == 1 else None
            ax.plot([r["branches"] for r in rows], [r[column] for r in rows], label=label, **style)
    yscale = "log" if column == "difference" else "linear"
    ax.set(xlabel="residual branches L", ylabel=YLABELS[column], yscale=yscale)
    caption(figure, "a marker is a network of that depth", *ax.get_legend_handles_labels())
    return figure


FIGURES = (
    Figure(
        "lemma-c1", "Lemma C.1",
        "the rescaled residual network is the original one; with eq. (22) as printed it is not",
        """No training: a pre-norm network can be rescaled so that its trunk keeps scale 1 and its output does
not change. Measured on random networks, with τ as worked out from eq. (12) and with the closed form that eq. (22)
prints.""",
        lemma_c1_claims, draw, compute=lemma_c1,
    ),
    Figure(
        "eq22", "Eq. (22) as printed", "α_res is the ratio it is called; with eq. (22) as printed it is not",
        """No training: the ratio of the branches' scale to the embedding's, which at α_res = 1 should be 1 at
every depth.""",
        eq22_claims, draw, compute=eq22,
    ),
)  # fmt: skip
