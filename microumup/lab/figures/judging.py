"""Claims and whether they hold: an effect with its 95 % interval over seeds, a criterion, and the verdict."""

from collections.abc import Sequence
from math import inf, isfinite, isnan
from typing import NamedTuple

from microumup.lab.figures.rows import Row, or_nan
from microumup.lab.statistics import Estimate, seeds_to_tell

HOLDS, PARTLY, UNDECIDED, FAILS = "holds", "holds partly", "undecided", "does not hold at this scale"
REPORTED, NOT_JUDGED = "reported", "not judged"


class Criterion(NamedTuple):
    """Bounds of what an effect has to be: at least `low` and at most `high`. Without either it is only reported."""

    low: float = -inf
    high: float = inf

    def __str__(self) -> str:
        if self.low > -inf and self.high < inf:
            return f"within ±{self.high:g}" if self.low == -self.high else f"from {self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low > -inf else f"at most {self.high:g}" if self.high < inf else ""

    def allows(self, value: float) -> bool:
        """True if `value` meets it; NaN meets nothing."""
        return self.low <= value <= self.high

    def opposed(self, low: float, high: float) -> bool:
        """True if an interval contains the opposite of what is asked.

        Where a sign is asked (at least 0.02, at most -1) that is any effect of the other sign. Where a small effect is
        asked (within ±0.5) it is one that is too large, but to which side is not known. `at most 0.04` allows any
        negative effect, so it has no opposite.
        """
        if self.low >= 0:
            return low < 0
        if self.high <= 0:
            return high > 0
        return low < self.low and high > self.high


REPORT = Criterion()


def judge(estimate: Estimate, criterion: Criterion) -> str:
    """The verdict: the one place where it is made.

    It *holds* when the estimate and its whole interval meet the criterion, and *does not hold* when nothing in the
    interval does. In between, where the estimate meets it and the interval reaches beyond, it *holds partly*; but it is
    *undecided* if the interval contains the opposite too (`Criterion.opposed`), and where the estimate misses what its
    interval reaches. The interval of one seed is not known: it reaches anywhere but to the opposite.
    """
    if criterion == REPORT:
        return REPORTED
    if isnan(estimate.value):
        return NOT_JUDGED
    low, high = or_nan(estimate.low), or_nan(estimate.high)
    if not criterion.allows(estimate.value):
        return FAILS if high < criterion.low or low > criterion.high else UNDECIDED
    if criterion.allows(low) and criterion.allows(high):
        return HOLDS
    return UNDECIDED if criterion.opposed(low, high) else PARTLY


def together(verdicts: Sequence[str]) -> str:
    """The verdict on a claim of several parts: what is only reported does not count."""
    judged = {verdict for verdict in verdicts if verdict != REPORTED}
    if len(judged) < 2:
        return min(judged, default=REPORTED)
    if NOT_JUDGED in judged:
        return NOT_JUDGED
    return PARTLY if judged & {HOLDS, PARTLY} else UNDECIDED


class Claim(NamedTuple):
    """A claim and what was found."""

    claim: str
    effect: float | None  # None: there is no such number
    low: float | None  # the 95 % interval over seeds; None where there is one seed
    high: float | None
    unit: str
    paper: str  # the paper's figure
    criterion: str
    verdict: str
    seeds: int = 0  # that the interval is over; 0: chance has no part in it
    seeds_needed: int | None = None  # to decide it, by the spread over those there are; None: it is, or that is unknown


def claim(text: str, estimate: Estimate, criterion: Criterion = REPORT, unit: str = "nats", paper: str = "") -> Claim:
    """A claim with its verdict."""
    effect, verdict = None if isnan(estimate.value) else estimate.value, judge(estimate, criterion)
    needed = None
    if verdict in (PARTLY, UNDECIDED):
        limits = [limit for limit in criterion if isfinite(limit)]
        needed = seeds_to_tell(estimate, min(abs(estimate.value - limit) for limit in limits))
    found = (text, effect, estimate.low, estimate.high, unit, paper, str(criterion), verdict)
    return Claim(*found, estimate.seeds, needed)


def amount(value: float | None, unit: str) -> str:
    """A number as it is shown; differences have their sign."""
    if value is None:
        return "–"
    return {"nats": f"{value:+.3f}", "octaves": f"{value:+.2f}"}.get(unit, f"{value:.3g}")


def measured(claim: Row) -> str:
    """The effect of a claim of a JSON, with its unit."""
    return f"{amount(claim['effect'], claim['unit'])} {claim['unit']}".strip()
