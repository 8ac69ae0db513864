"""The verdict, and the numbers it is on."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microumup.lab.figures.judging import (
    FAILS,
    HOLDS,
    NOT_JUDGED,
    PARTLY,
    REPORTED,
    UNDECIDED,
    Criterion,
    claim,
    judge,
    together,
)
from microumup.lab.figures.rows import Rows, over_seeds
from microumup.lab.statistics import Estimate, exactly, mean_interval

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


@given(numbers, st.floats(0, 10), st.floats(0, 10), criteria, st.floats(0, 1))
def test_what_is_said_to_fail_violates_the_criterion_with_its_whole_interval(
    value: float, below: float, above: float, criterion: Criterion, share: float
) -> None:
    """Seen at any place of the interval; and where the whole of it does, it fails."""
    low, high = value - below, value + above
    fails = judge(Estimate(value, low, high), criterion) == FAILS
    if fails:
        assert not criterion.allows(low + share * (high - low))
    meets = max(low, criterion.low) <= min(high, criterion.high)
    if criterion.low <= criterion.high:
        assert fails != meets


@pytest.mark.parametrize(
    ("estimate", "criterion", "verdict"),
    [
        (Estimate(0.1, 0.05, 0.15), Criterion(low=0.02), HOLDS),
        (Estimate(0.1, 0.01, 0.19), Criterion(low=0.02), PARTLY),
        (Estimate(0.01, 0.0, 0.015), Criterion(low=0.02), FAILS),
        (Estimate(0.01, 0.0, 0.02), Criterion(low=0.02), UNDECIDED),  # it may be as much as is asked
        (Estimate(0.7, -1.5, 2.9), Criterion(-0.5, 0.5), UNDECIDED),
        (Estimate(0.7, 0.6, 0.8), Criterion(-0.5, 0.5), FAILS),
        (Estimate(-0.7, -0.8, -0.6), Criterion(-0.5, 0.5), FAILS),
        (Estimate(0.01), Criterion(low=0.02), UNDECIDED),  # one seed: the interval is not known
        (Estimate(0.003, -0.019, 0.024), Criterion(low=0.0), UNDECIDED),  # it may as well be the other way round
        (Estimate(0.1, -0.01, 0.21), Criterion(low=0.02), UNDECIDED),
        (Estimate(-1.3, -2.8, 0.2), Criterion(high=-1.0), UNDECIDED),
        (Estimate(-1.3, -2.1, -0.5), Criterion(high=-1.0), PARTLY),  # less than asked, but not the opposite
        (Estimate(0.01, -0.03, 0.05), Criterion(high=0.04), PARTLY),  # below 0 is as good
        (Estimate(0.1, -0.6, 0.8), Criterion(-0.5, 0.5), UNDECIDED),
        (Estimate(0.3, 0.1, 0.8), Criterion(-0.5, 0.5), PARTLY),
        (Estimate(-0.01, -0.03, 0.01), Criterion(low=0.0), UNDECIDED),
        (Estimate(-0.02, -0.03, -0.01), Criterion(low=0.0), FAILS),
        (Estimate(0.1), Criterion(low=0.02), PARTLY),  # one seed: the interval is not known
        (exactly(0.1), Criterion(low=0.02), HOLDS),
        (Estimate(nan), Criterion(low=0.02), NOT_JUDGED),
        (Estimate(nan), Criterion(), REPORTED),
        (Estimate(-0.5, -0.6, -0.4), Criterion(-0.5, 0.5), PARTLY),
    ],
)
def test_verdicts(estimate: Estimate, criterion: Criterion, verdict: str) -> None:
    assert judge(estimate, criterion) == verdict


def test_a_claim_says_from_how_many_seeds_it_is_and_how_many_would_decide_it() -> None:
    """A spread of 1, and 0.5 from the limit: (2.03 + 0.84) / 0.5 is the root of 33."""
    close = mean_interval([-0.5, 0.5, 1.5])
    claims = [claim("", close, Criterion(low=limit)) for limit in (0.0, -9.0)]
    assert [(c.verdict, c.seeds, c.seeds_needed) for c in claims] == [(UNDECIDED, 3, 34), (HOLDS, 3, None)]
    assert claim("", exactly(1.0), Criterion(low=0.0)).seeds == 0
    assert claim("", mean_interval([0.5]), Criterion(low=0.0)).seeds_needed is None  # nothing is known of the spread


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([HOLDS, HOLDS, REPORTED], HOLDS),
        ([HOLDS, FAILS], PARTLY),
        ([HOLDS, PARTLY], PARTLY),
        ([PARTLY, FAILS], PARTLY),
        ([FAILS, FAILS, REPORTED], FAILS),
        ([HOLDS, UNDECIDED], PARTLY),
        ([UNDECIDED, FAILS], UNDECIDED),
        ([UNDECIDED, REPORTED], UNDECIDED),
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


def test_only_seeds_that_both_sides_have_are_compared() -> None:
    one: Rows = [{"seed": seed, "value": 1.0 * seed} for seed in (0, 1, 2)]
    other: Rows = [{"seed": seed, "value": 2.0 * seed} for seed in (1, 2, 3)]
    estimate = over_seeds(lambda a, b: float(b[0]["value"] - a[0]["value"]), one, other)
    assert estimate.value == 1.5
