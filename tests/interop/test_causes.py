"""Causes find themselves: what a way puts out is explained by its own words; and factors get their names."""

import numpy as np
import pytest

from microumup.interop.cases import all_cases, expected, run
from microumup.interop.causes import alternatives, without_training
from microumup.interop.factor_names import name_factor
from microumup.interop.judge import explained, judge, same
from microumup.interop.ways import Try

CASES = list(all_cases())
VALUES = {"fan_in": 5.0, "fan_out": 7.0, "b": 6.0}


FEW = {"model.umup.float32", "plan.umup.w96", "plan.mup.w96"}  # of models and Plans, which have the same ways
OPS = sorted({case.op for case in CASES} - {"model", "model_fp8", "plan"})


def put_out(case, way):
    """The outputs of a case if it were done so, in its dtypes."""
    first = without_training(case)
    true = expected(case) if first is case or case.op in OPS else run(case.op, first.inputs, case.settings)
    with np.errstate(all="ignore"):
        found = way(Try(first))
    return true, true | {name: a.astype(true[name].dtype) for name, a in found.items() if name in true}


def test_no_way_is_dead() -> None:
    """Each changes something in some case: one that never does could never be named."""
    alive, known = set(), set()
    for case in CASES:
        if case.op not in OPS and case.name not in FEW:
            continue
        for words, way in alternatives(case):
            known.add((case.op, words))
            true, found = put_out(case, way)
            if any(f.shape != true[n].shape or not same(case, n, true[n], f) for n, f in found.items()):
                alive.add(words)
    dead = {words for _, words in known} - alive
    assert dead == {"attention's σ of the input's length; it is the training length: App. B", "w is cast to E4M3"}


@pytest.mark.parametrize("op", OPS)
def test_what_a_way_puts_out_is_explained_by_its_words(op: str) -> None:
    """In every case where it changes anything, unless all it leaves is NaN; another cause may say the same."""
    for case in CASES:
        for words, way in alternatives(case) if case.op == op else ():
            _, received = put_out(case, way)
            wrong = [f for f in explained(judge(case, received), {case.name: received}) if not f.passed]
            assert all(words in f.causes for f in wrong if not f.problem), (case.name, words)


@pytest.mark.parametrize(
    ("found", "right", "name", "words"),
    [
        (1.0, 5**-0.5, "fan_in^-1/2", "the factor fan_in^-1/2 is missing"),
        (7**-0.5, 5**-0.5, "fan_in^-1/2", "the factor is fan_out^-1/2, not fan_in^-1/2"),
        (1 / 5, 5**-0.5, "fan_in^-1/2", "the factor is 1/fan_in, not fan_in^-1/2"),
        (5**0.5, 5**-0.5, "fan_in^-1/2", "the factor is √fan_in, not fan_in^-1/2"),
        (-(5**-0.5), 5**-0.5, "fan_in^-1/2", "the sign is wrong"),
        (0.3**2, 0.3, "1/σ", "the factor 1/σ is there twice"),
        (1 / 0.3, 0.3, "1/σ", "the factor 1/σ is inverted"),
        (0.3 * 6, 0.3, "1/σ", "a factor b too much"),
        (0.3 * 6**-0.5, 0.3, "1/σ", "a factor √b is missing"),
        (0.3 * 6 * 7, 0.3, "1/σ", "factors fan_out and b too much"),
        (6.0, 1.0, "1", "a factor b too much"),
    ],
)
def test_a_factor_gets_its_name(found: float, right: float, name: str, words: str) -> None:
    assert name_factor(found, right, name, VALUES)[0] == words


def test_a_factor_that_is_none_of_them_gets_no_name() -> None:
    rng = np.random.default_rng(0)
    named = [name_factor(float(x), 5**-0.5, "fan_in^-1/2", VALUES) for x in rng.uniform(0.1, 3, 1000)]
    assert sum(map(bool, named)) <= 10  # by chance: 60 products at 1e-5 each
