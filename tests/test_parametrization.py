"""One test per cell of the table at the top of parametrization.py, under the name of its place there."""

from math import isclose, sqrt

import pytest

from microumup.multipliers import residual_multipliers, residual_taus
from microumup.parametrization import ALIASES, SCHEMES, Shape, Weight, weight, without_embedding_lr_rule

D, F, V, BASE_D, L, BASE_L = 128, 352, 1000, 64, 12, 8
HPS = {"sigma_init": 0.5, "alpha_emb": 3.0}
INPUT = Shape(V, D, V, L, BASE_L, **HPS)
OUTPUT = Shape(D, V, BASE_D, L, BASE_L, **HPS)
HIDDEN = Shape(D, D, BASE_D, L, BASE_L, in_branch=True, **HPS)
DOWN = Shape(F, D, 11 * BASE_D / 4, L, BASE_L, in_branch=True, **HPS)
SHAPES = {"input": INPUT, "output": OUTPUT, "hidden": HIDDEN, "down": DOWN}

depth_lr = sqrt(BASE_L / L)
CELLS = {  # scheme, weight -> init std, A, A backward, C
    ("sp", "input"): (1, 1, 1, 1),
    ("sp", "output"): (D**-0.5, 1, 1, 1),
    ("sp", "hidden"): (D**-0.5, 1, 1, 1),
    ("sp", "down"): (F**-0.5, 1, 1, 1),
    ("mup", "input"): (0.5, 3, 3, 1),
    ("mup", "output"): (0.5 * BASE_D**-0.5, 1 / 2, 1 / 2, 1),
    ("mup", "hidden"): (0.5 * BASE_D**-0.5 * sqrt(1 / 2), 1, 1, depth_lr / 2),
    ("mup", "down"): (0.5 * F**-0.5, 1, 1, depth_lr / 2),
    ("mup-table2", "input"): (1, 0.5 * 3, 0.5 * 3, 2),
    ("mup-table2", "output"): (1, 0.5 * BASE_D**0.5 / D, 0.5 * BASE_D**0.5 / D, 2 * BASE_D**0.5),
    ("mup-table2", "hidden"): (1, 0.5 * D**-0.5, 0.5 * D**-0.5, 2 * BASE_D * D**-0.5 * depth_lr),
    ("mup-table2", "down"): (1, 0.5 * F**-0.5, 0.5 * F**-0.5, 2 * 11 / 4 * BASE_D * F**-0.5 * depth_lr),
    ("mup-table3", "input"): (1, 3, 3, 1),
    ("mup-table3", "output"): (1, 1 / D, 1 / D, 1),
    ("mup-table3", "hidden"): (1, D**-0.5, D**-0.5, D**-0.5 * L**-0.5),
    ("mup-table3", "down"): (1, F**-0.5, F**-0.5, F**-0.5 * L**-0.5),
    ("umup", "input"): (1, 1, 1, D**-0.5),
    ("umup", "output"): (1, 1 / D, D**-0.5, 1),
    ("umup", "hidden"): (1, D**-0.5, D**-0.5, D**-0.5 * L**-0.5),
    ("umup", "down"): (1, F**-0.5, F**-0.5, F**-0.5 * L**-0.5),
    ("umup-iclr", "input"): (1, 1, 1, D**-0.5),
    ("umup-iclr", "output"): (1, 1 / D, V**-0.5, 1),
    ("umup-iclr", "hidden"): (1, D**-0.5, D**-0.5, D**-0.5 * (L / 2) ** -0.5),
    ("umup-iclr", "down"): (1, F**-0.5, F**-0.5, F**-0.5 * (L / 2) ** -0.5),
}


def cell(scheme: str, place: str) -> Weight:
    return weight(SCHEMES[scheme], "hidden" if place == "down" else place, SHAPES[place])


TABLE = {
    "sp": "standard", "mup": "table 1", "umup": "table 1", "mup-table2": "table 2", "mup-table3": "table 3",
    "umup-iclr": "published version",
}  # fmt: skip
COLUMNS = ("init_std", "A", "A_backward", "C")


@pytest.mark.parametrize(
    ("scheme", "place", "part", "expected"),
    [
        pytest.param(scheme, place, part, value, id=f"{TABLE[scheme]}, {scheme}, {place}, {part}")
        for (scheme, place), values in CELLS.items()
        for part, value in zip(COLUMNS, values, strict=True)
    ],
)
def test_cell(scheme: str, place: str, part: str, expected: float) -> None:
    assert isclose(getattr(cell(scheme, place), part), expected, rel_tol=1e-15)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        pytest.param(scheme, expected, id=f"{TABLE[scheme]}, {scheme}, residual, multiplier")
        for scheme, expected in {
            "sp": [(1, 1)] * L,
            "mup": [(sqrt(BASE_L / L), 1)] * L,
            "mup-table2": [(sqrt(BASE_L / L), 1)] * L,
            "mup-table3": [(L**-0.5, 1)] * L,
            "umup": residual_multipliers(residual_taus(L, 2.0, 0.5)),
            "umup-iclr": residual_multipliers(residual_taus(L, 2.0 * sqrt(2), 0.5)),
        }.items()
    ],
)
def test_residual_multiplier_cell(scheme: str, expected: list[tuple[float, float]]) -> None:
    assert SCHEMES[scheme].residual.multipliers(L, BASE_L, 2.0, 0.5) == expected


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        pytest.param(scheme, expected, id=f"{TABLE[scheme]}, {scheme}, residual, C")
        for scheme, expected in {
            "sp": 1, "mup": depth_lr, "mup-table2": depth_lr, "mup-table3": L**-0.5, "umup": L**-0.5,
            "umup-iclr": (L / 2) ** -0.5,
        }.items()
    ],
)  # fmt: skip
def test_residual_lr_cell(scheme: str, expected: float) -> None:
    assert isclose(SCHEMES[scheme].residual.C(HIDDEN), expected, rel_tol=1e-15)


def test_attention_scores_are_divided_by_the_head_dim_but_in_sp() -> None:
    assert SCHEMES["sp"].score_scale(16) == 1 / 4
    assert {row.score_scale(16) for name, row in SCHEMES.items() if name != "sp"} == {1 / 16}


def test_every_row_is_asserted_here() -> None:
    assert {scheme for scheme, _ in CELLS} == set(SCHEMES)


@pytest.mark.parametrize("place", SHAPES)
def test_mup_table2_is_mup_after_the_abc_symmetry(place: str) -> None:
    before, after = cell("mup", place), cell("mup-table2", place)
    theta = before.init_std
    moved = (before.init_std / theta, before.A * theta, before.A_backward * theta, before.C / theta)
    assert after[2:] == pytest.approx(moved, rel=1e-14)


@pytest.mark.parametrize("place", SHAPES)
def test_mup_table3_differs_from_mup_table2_by_constants_of_the_base_shape(place: str) -> None:
    """At σ_init = 1, whatever the width and depth: which constants, says the docstring of parametrization.py."""
    base = SHAPES[place]._replace(sigma_init=1.0)
    ratios = []
    for scale in (1, 4):
        shape = base._replace(depth=scale * L)
        if place != "input":
            shape = shape._replace(fan_in=scale * shape.fan_in)
        type = "hidden" if place == "down" else place
        two, three = (weight(SCHEMES[name], type, shape) for name in ("mup-table2", "mup-table3"))
        ratios.append((two.A / three.A, two.C / three.C))
    depth = 1.0 if place in ("input", "output") else sqrt(BASE_L)
    width = {"input": 1, "output": BASE_D**0.5, "hidden": BASE_D, "down": 11 / 4 * BASE_D}[place]
    expected = (BASE_D**0.5 if place == "output" else 1, width * depth)
    assert ratios[0] == pytest.approx(expected)
    assert ratios[1] == pytest.approx(expected)


def test_mup_at_its_base_shape_is_sp() -> None:
    for place, shape in SHAPES.items():
        type = "hidden" if place == "down" else place
        base = shape._replace(base_fan_in=shape.fan_in, base_depth=L, sigma_init=1.0, alpha_emb=1.0)
        mup, sp = weight(SCHEMES["mup"], type, base), weight(SCHEMES["sp"], type, base)
        assert mup[2:] == pytest.approx(sp[2:], rel=1e-15)


def test_eta_emb_multiplies_the_embedding_alone() -> None:
    for scheme in SCHEMES.values():
        assert weight(scheme, "input", INPUT._replace(eta_emb=4.0)).C == 4 * weight(scheme, "input", INPUT).C
        assert weight(scheme, "hidden", HIDDEN._replace(eta_emb=4.0)) == weight(scheme, "hidden", HIDDEN)


def test_the_embedding_lr_rule_can_be_ablated() -> None:
    ablated = without_embedding_lr_rule(SCHEMES["umup"])
    assert weight(ablated, "input", INPUT) == cell("umup", "input")._replace(C=1.0)
    assert ablated._replace(input=SCHEMES["umup"].input) == SCHEMES["umup"]


def test_weights_are_stored_fan_out_first_and_embeddings_by_token() -> None:
    assert cell("umup", "input").shape == (V, D)
    assert cell("umup", "output").shape == (V, D)
    assert cell("umup", "down").shape == (D, F)


def test_aliases_lead_to_hyperparameters_of_some_scheme() -> None:
    known = {name for scheme in SCHEMES.values() for name in scheme.hyperparameters}
    assert set(ALIASES.values()) <= known
    assert not set(ALIASES) & known
