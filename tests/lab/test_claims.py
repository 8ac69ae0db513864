"""No claim is said to hold when its numbers do not: every one is shown made-up results of either outcome."""

from collections.abc import Callable
from functools import cache
from math import inf, nan

import pytest
from fabricated import World, data, lines
from hypothesis import given
from hypothesis import strategies as st

from microumup.lab import claims, rules
from microumup.lab.claims import (
    FAILS,
    HOLDS,
    NOT_JUDGED,
    PARTLY,
    REPORTED,
    Claim,
    Criterion,
    Data,
    Rows,
    expected_best,
    judge,
    together,
)
from microumup.lab.figures import FIGURES, UMUP_SEARCHED
from microumup.lab.statistics import Estimate, exactly

# ---------------------------------------------------------------------------------------------------------------------
# The verdict

numbers = st.floats(-10, 10)
criteria = st.builds(Criterion, low=numbers | st.just(-inf), high=numbers | st.just(inf))


@given(numbers | st.just(nan), numbers | st.none(), numbers | st.none(), criteria)
def test_what_is_said_to_hold_satisfies_the_criterion_with_its_whole_interval(
    value: float, low: float | None, high: float | None, criterion: Criterion
) -> None:
    verdict = judge(Estimate(value, low, high), criterion)
    satisfied = [end is not None and criterion.low <= end <= criterion.high for end in (value, low, high)]
    assert (verdict == HOLDS) == (all(satisfied) and criterion != Criterion())
    if verdict == PARTLY:
        assert satisfied[0]
    if verdict == FAILS:
        assert not satisfied[0]


@pytest.mark.parametrize(
    ("estimate", "criterion", "verdict"),
    [
        (Estimate(0.1, 0.05, 0.15), Criterion(low=0.02), HOLDS),
        (Estimate(0.1, 0.01, 0.19), Criterion(low=0.02), PARTLY),
        (Estimate(0.01, 0.0, 0.02), Criterion(low=0.02), FAILS),
        (Estimate(0.1), Criterion(low=0.02), PARTLY),  # one seed: the interval is not known
        (exactly(0.1), Criterion(low=0.02), HOLDS),
        (Estimate(nan), Criterion(low=0.02), NOT_JUDGED),
        (Estimate(nan), Criterion(), REPORTED),
        (Estimate(-0.5, -0.6, -0.4), Criterion(-0.5, 0.5), PARTLY),
    ],
)
def test_verdicts(estimate: Estimate, criterion: Criterion, verdict: str) -> None:
    assert judge(estimate, criterion) == verdict


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([HOLDS, HOLDS, REPORTED], HOLDS),
        ([HOLDS, FAILS], PARTLY),
        ([HOLDS, PARTLY], PARTLY),
        ([PARTLY, FAILS], PARTLY),
        ([FAILS, FAILS, REPORTED], FAILS),
        ([HOLDS, NOT_JUDGED], NOT_JUDGED),
        ([REPORTED], REPORTED),
        ([], REPORTED),
    ],
)
def test_the_verdict_on_several_parts(parts: list[str], verdict: str) -> None:
    assert together(parts) == verdict


@pytest.mark.parametrize(
    ("criterion", "text"),
    [
        (Criterion(-0.5, 0.5), "within ±0.5"),
        (Criterion(1, 2), "from 1 to 2"),
        (Criterion(low=0.2), "at least 0.2"),
        (Criterion(high=-1.2), "at most -1.2"),
        (Criterion(), ""),
    ],
)
def test_a_criterion_says_what_it_asks(criterion: Criterion, text: str) -> None:
    assert str(criterion) == text


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
        GOOD._replace(floor=same_floor),
    ],
    "fig1-right": [GOOD._replace(cast=lines(umup=0.1, mup_small=0.5), flushed=lines(umup=0.1, mup_small=0.9))],
    "fig2-left": [GOOD._replace(emb_drift=lines())],
    "fig2-right": [GOOD._replace(floor=same_floor, against=lines(umup=0.1))],
    "fig3": [GOOD._replace(init=(-3, 3), growth=-1), GOOD._replace(growth_of={"head.w": 5.0})],
    "fig4": [GOOD._replace(emb_drift=lines(umup=-0.8))],
    "fig5": [GOOD._replace(floor=same_floor, lr_drift=lines(umup=-0.4))],
    "fig6": [
        GOOD._replace(steps_drift=lines(other=-0.35), batch_drift=lines(other=0.35)),
        GOOD._replace(floor=same_floor),
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
        GOOD._replace(moves=dict.fromkeys(("width", "layers", "steps", "batch_size", *UMUP_SEARCHED), 1.0)),
    ],
    "fig10": [],
    "fig11": [],
    "table1": [scaled("measured", 1.1)],
    "table4": [scaled("measured", 1.3)],
    "lemma-c1": [exchanged],
    "eq22": [exchanged],
}


@cache
def good(name: str) -> Data:
    return data(FIGURES[name], GOOD)


def claims_in(name: str, world: World | Callable[[Data], Data]) -> list[Claim]:
    found = data(FIGURES[name], world) if isinstance(world, World) else world(good(name))
    return FIGURES[name].claims(found)


def test_every_figure_is_shown_both_outcomes() -> None:
    assert list(BAD) == list(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_every_claim_holds_where_it_is_true(name: str) -> None:
    for claim in FIGURES[name].claims(good(name)):
        assert claim.verdict == (HOLDS if claim.criterion else REPORTED), claim


@pytest.mark.parametrize("name", [name for name, worlds in BAD.items() if worlds])
def test_every_claim_fails_where_it_is_false(name: str) -> None:
    worlds = [{claim.claim: claim for claim in claims_in(name, world)} for world in BAD[name]]
    for claim in FIGURES[name].claims(good(name)):
        if claim.criterion:
            verdicts = [world[claim.claim].verdict for world in worlds]
            assert FAILS in verdicts, (claim.claim, [world[claim.claim] for world in worlds])


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


# ---------------------------------------------------------------------------------------------------------------------
# What is missing or diverged


@pytest.mark.parametrize("name", [name for name, figure in FIGURES.items() if figure.recipe])
def test_nothing_holds_when_every_run_diverged(name: str) -> None:
    def diverge(line: str, config: dict[str, object]) -> bool:
        return True

    for claim in claims_in(name, GOOD._replace(diverged=diverge)):
        about_ranges = "RMS" in claim.claim or "grows" in claim.claim or "share of all dy" in claim.claim
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


def test_only_seeds_that_both_sides_have_are_compared() -> None:
    one: Rows = [{"seed": seed, "value": 1.0 * seed} for seed in (0, 1, 2)]
    other: Rows = [{"seed": seed, "value": 2.0 * seed} for seed in (1, 2, 3)]
    estimate = claims.over_seeds(lambda a, b: float(b[0]["value"] - a[0]["value"]), one, other)
    assert estimate.value == 1.5


# ---------------------------------------------------------------------------------------------------------------------
# Search


def test_the_phases_of_a_search_are_found_in_its_rows() -> None:
    def row(loss: float, lr: float = 1.0, a: float = 1.0, b: float = 1.0) -> dict[str, object]:
        return {"line": "umup", "lr": lr, "a": a, "b": b, "seed": 0, "vocab_size": 9, "loss": loss, "diverged": False,
                "seconds": 1.0, "version": "0"}  # fmt: skip

    first = [row(3.0), row(2.5, lr=2.0)]
    line_searches = [row(2.4, 2.0, a=2.0), row(2.6, 2.0, a=4.0), row(2.3, 2.0, b=2.0)]
    combined = [row(2.35, 2.0, 2.0, 2.0), row(2.2, 4.0, 2.0, 2.0)]
    drawn = [row(2.9, 1.0, 4.0, 4.0)]
    search, rest = claims.independent_search([*drawn, *first, *combined, *line_searches])
    assert search == (2.5, 2.3, 2.35, 2.2)
    assert search.harm == pytest.approx(0.05)
    assert rest == drawn


@pytest.mark.parametrize(("count", "best"), [(1, 2.0), (2, (1 + 1 + 2) / 3), (3, 1.0), (9, 1.0)])
def test_a_shorter_random_search_is_a_mean_over_samples(count: int, best: float) -> None:
    assert expected_best([3.0, 1.0, 2.0], count) == pytest.approx(best)
