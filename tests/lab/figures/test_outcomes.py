"""No claim is said to hold when its numbers do not: every one is shown made-up results of either outcome."""

from collections.abc import Callable
from functools import cache

import pytest
from fabricated import World, data, lines

from microumup.lab.figures import rules
from microumup.lab.figures.command import FIGURES
from microumup.lab.figures.judging import FAILS, HOLDS, NOT_JUDGED, PARTLY, REPORTED, UNDECIDED, Claim
from microumup.lab.figures.rows import Data
from microumup.lab.figures.settings import TABLE6_RANGES, UMUP

# ---------------------------------------------------------------------------------------------------------------------
# Both outcomes of every claim

GOOD = World()


def scaled(column: str, factor: float) -> Callable[[Data], Data]:
    """Results of a figure without runs, with all that was measured wrong by a factor."""
    return lambda good: Data([row | {column: row[column] * factor} for row in good.runs], [])


def exchanged(good: Data) -> Data:
    """The two rules for τ taken for each other."""
    other = {rules.EQ12: rules.EQ22, rules.EQ22: rules.EQ12}
    return Data([row | {"rule": other[row["rule"]]} for row in good.runs], [])


same_floor = lines(other=2.0)
BAD: dict[str, list[World | Callable[[Data], Data]]] = {  # in one of them each claim of the figure fails
    "fig1-left": [
        GOOD._replace(lr_drift=lines(other=-0.4)),
        GOOD._replace(lr_drift=lines(other=-0.3)),  # still inside the narrow grid of µP with a small base
        GOOD._replace(lr_drift=lines(umup=-0.5), basin=lines(other=0.1)),
        GOOD._replace(floor=lines(other=2.0, umup=2.1)),
    ],
    "fig1-right": [GOOD._replace(cast=lines(umup=0.1, mup_small=0.5), flushed=lines(umup=0.1, mup_small=0.9))],
    "fig2-left": [GOOD._replace(emb_drift=lines())],
    "fig2-right": [GOOD._replace(floor=lines(other=2.0, umup=2.1), against=lines(umup=0.1))],
    "fig3": [GOOD._replace(init=(-3, 3), growth=-1), GOOD._replace(growth_of={"head.w": 5.0})],
    "fig4": [GOOD._replace(emb_drift=lines(umup=-0.8))],
    "fig5": [GOOD._replace(floor=same_floor, lr_drift=lines(umup=-0.4))],
    "fig6": [
        GOOD._replace(steps_drift=lines(other=-0.35), batch_drift=lines(other=0.35)),
        GOOD._replace(steps_drift=lines(umup=-0.3), batch_drift=lines(umup=0.3), layers_drift=lines(umup=0.3)),
        GOOD._replace(floor=lines(other=2.0, sp=1.9, umup=2.1)),
    ],
    "fig7": [
        GOOD._replace(
            cast=lines(umup=0.1, mup_small=0.5),
            cast_summed=0.1,
            cast_e5m2=0.05,
            flushed=lines(umup=0.1, mup_small=0.9),
        )
    ],
    "fig8": [GOOD._replace(growth_of={"layer0.q.x": 4.0})],
    "fig9": [
        GOOD._replace(moves={"lr": 0.1}),
        GOOD._replace(moves=dict.fromkeys(("width", "layers", "steps", "batch_size", *TABLE6_RANGES[UMUP]), 1.0)),
    ],
    "fig10": [],
    "fig11": [],
    "table1": [scaled("measured", 1.1)],
    "table4": [scaled("measured", 1.3)],
    "lemma-c1": [exchanged],
    "eq22": [exchanged],
    "adam-eps": [GOOD._replace(eps=lines(other=-4.0)), GOOD._replace(eps_drift=lines(umup=-0.5))],
}


@cache
def good(name: str) -> Data:
    return data(FIGURES[name], GOOD)


def claims_in(name: str, world: World | Callable[[Data], Data]) -> list[Claim]:
    found = data(FIGURES[name], world) if isinstance(world, World) else world(good(name))
    return list(FIGURES[name].claims(found))


def test_every_figure_is_shown_both_outcomes() -> None:
    assert list(BAD) == list(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_every_claim_holds_where_it_is_true(name: str) -> None:
    for claim in FIGURES[name].claims(good(name)):
        seeds = HOLDS if claim.low is not None else PARTLY  # of one seed no interval is known
        assert claim.verdict == (seeds if claim.criterion else REPORTED), claim


@pytest.mark.parametrize("name", [name for name, worlds in BAD.items() if worlds])
def test_every_claim_fails_where_it_is_false(name: str) -> None:
    worlds = [{claim.claim: claim for claim in claims_in(name, world)} for world in BAD[name]]
    for claim in FIGURES[name].claims(good(name)):
        if claim.criterion:
            verdicts = [world[claim.claim].verdict for world in worlds]
            seeds = FAILS if claim.low is not None else UNDECIDED  # of one seed no interval is known
            assert seeds in verdicts, (claim.claim, [world[claim.claim] for world in worlds])


def test_no_effect_that_is_said_to_hold_violates_its_criterion() -> None:
    for name, worlds in BAD.items():
        for world in worlds:
            for claim in claims_in(name, world):
                if claim.verdict == HOLDS:
                    limits = [float(x) for x in claim.criterion.replace("within ±", "to ").split() if x[-1].isdigit()]
                    assert claim.low is not None
                    assert claim.high is not None
                    if claim.criterion.startswith("at least"):
                        assert claim.low >= limits[0]
                    elif claim.criterion.startswith("at most"):
                        assert claim.high <= limits[0]
                    else:
                        assert max(abs(claim.low), abs(claim.high)) <= limits[0]


def test_that_u_mup_s_loss_is_lower_is_judged_wherever_both_were_run() -> None:
    """At every width and number of steps: not only where it holds."""
    for name, line, column, words in (
        ("fig1-left", "mup", "width", "at width"),
        ("fig1-left", "mup-small", "width", "at width"),
        ("fig6", "mup-small", "steps", "after"),
    ):
        sizes = {row[column] for row in good(name).runs if row["line"] == line and row.get("axis", column) == column}
        found = [claim for claim in FIGURES[name].claims(good(name)) if f"is above u-µP's {words}" in claim.claim]
        judged = {claim.claim for claim in found if claim.criterion == "at least 0"}
        assert len(judged) == len(found)
        assert all(any(f"{words} {size} " in text for text in judged) for size in sizes)


# ---------------------------------------------------------------------------------------------------------------------
# What is missing or diverged


@pytest.mark.parametrize("name", [name for name, figure in FIGURES.items() if figure.recipe])
def test_nothing_holds_when_every_run_diverged(name: str) -> None:
    def diverge(line: str, config: dict[str, object]) -> bool:
        return True

    for claim in claims_in(name, GOOD._replace(diverged=diverge)):
        about_ranges = "RMS" in claim.claim or "grow" in claim.claim or "share of all dy" in claim.claim
        assert claim.verdict != HOLDS or about_ranges, claim


def test_a_diverged_fp8_run_counts_as_one_that_guesses() -> None:
    diverging = GOOD._replace(diverged=lambda line, config: line == "mup-small" and config["fp8"] == "fp8")
    by_claim = {claim.claim: claim for claim in claims_in("fig1-right", diverging)}
    claim = by_claim["µP: FP8's loss is above float32's at width 64, 512 steps, by"]
    assert claim.verdict == HOLDS
    assert claim.effect is not None
    assert 3 < claim.effect < 4  # ln 256 is 5.5


def test_an_optimum_at_the_edge_of_the_grid_is_not_judged() -> None:
    shifted = GOOD._replace(lr=GOOD.lr | {"umup": 5.0})
    verdicts = {claim.claim: claim.verdict for claim in claims_in("fig1-left", shifted)}
    assert verdicts["u-µP: the best learning rate moves from width 32 to 128 by"] == NOT_JUDGED
