import json
from math import inf, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microumup.config import TrainConfig
from microumup.lab.search import draw, grid, independent, parse_grid, ranked, summary

TINY: dict[str, Any] = {"width": 16, "head_dim": 8, "layers": 1}


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("lr=2^-2:2^3:2^0.5", "lr", [2 ** (x / 2) for x in range(-4, 7)]),
        ("lr=2**-2:2**0:2", "lr", [0.25, 0.5, 1.0]),
        ("lr=2^-9.5:2^-8:2^0.5", "lr", [2**-9.5, 2**-9, 2**-8.5, 2**-8]),
        ("lr=8:1:2^-1", "lr", [8.0, 4.0, 2.0, 1.0]),
        ("lr=1:10:4", "lr", [1.0, 4.0]),
        ("lr=1e-3:1:10", "lr", [1e-3, 1e-2, 1e-1, 1.0]),
        ("lr=0.5:2:+0.5", "lr", [0.5, 1.0, 1.5, 2.0]),
        ("width=32:128:2", "width", [32, 64, 128]),
        ("steps=128:512:2^0.5", "steps", [128, 181, 256, 362, 512]),
        ("layers=1:4:+1", "layers", [1, 2, 3, 4]),
        ("width=32,64,128", "width", [32, 64, 128]),
        ("--alpha-res=2^-1,1", "alpha_res", [0.5, 1.0]),
        ("alpha-residual=1", "alpha_res", [1.0]),
        ("scheme=sp,umup", "scheme", ["sp", "umup"]),
        ("fp8=none,fp8", "fp8", ["none", "fp8"]),
        ("fp8=none,fp8,head.dy=e4m3,fp8-iclr", "fp8", ["none", "fp8,head.dy=e4m3", "fp8-iclr"]),
        ("embedding-lr-rule=on,off", "embedding_lr_rule", [True, False]),
        ("text=/a.txt,b.txt", "text", [("/a.txt",), (str(Path("b.txt").absolute()),)]),
    ],
)
def test_a_grid_is_what_it_says(text: str, name: str, values: list[Any]) -> None:
    found = parse_grid(text)
    assert found[0] == name
    assert found[1] == pytest.approx(values, rel=1e-15) if isinstance(values[0], float) else found[1] == values
    assert [type(v) for v in found[1]] == [type(v) for v in values]


def test_half_octaves_are_exact_powers_of_two() -> None:
    """Or the runs of `lr=2^-2:2^3:2^0.5` and of `lr=1` would not be the same runs."""
    values = parse_grid("lr=2^-2:2^3:2^0.5")[1]
    assert values == [2 ** (x / 2) for x in range(-4, 7)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lrr=1", "'lrr' is no option of train"),
        ("1,2", "'1,2' is no option of train"),
        ("lr", "names no values"),
        ("lr=", "names no values"),
        ("lr=a", "'a' is not a number"),
        ("lr=1,,2", "'' is not a number"),
        ("width=1.5", "'1.5' is not a whole number"),
        ("lr=1:2", "from:to:factor"),
        ("lr=1:2:3:4", "from:to:factor"),
        ("lr=1:2:0.5", "no steps of 0.5 lead from 1 to 2"),
        ("lr=1:2:1", "no steps of 1 lead"),
        ("lr=0:2:2", "no steps of 2 lead"),
        ("lr=1:-2:2", "no steps of 2 lead"),
        ("lr=1:2:+0", "no steps of +0 lead"),
        ("lr=2:1:+1", "no steps of +1 lead"),
        ("lr=nan:2:2", "no steps"),
        ("lr=1:inf:2", "no steps"),
        ("lr=1:2:1.0000001", "no steps"),
        ("lr=1:2^5000:2", "is not a number"),
        ("embedding-lr-rule=yes", "'yes' is neither on nor off"),
    ],
)
def test_what_is_no_grid_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_grid(text)
    assert str(error.value).startswith(f"--grid {text}: ")
    assert complaint in str(error.value)


quarter_octaves = st.integers(-40, 40).map(lambda n: n / 4)


@given(low=quarter_octaves, steps=st.integers(0, 30), by=st.integers(1, 8).map(lambda n: n / 4))
def test_a_geometric_range_goes_from_end_to_end_in_equal_steps(low: float, steps: int, by: float) -> None:
    name, values = parse_grid(f"lr=2^{low}:2^{low + steps * by}:2^{by}")
    assert name == "lr"
    assert values == [2 ** (low + i * by) for i in range(steps + 1)]


@given(low=st.integers(1, 1000), steps=st.integers(0, 50), by=st.integers(1, 100))
def test_an_arithmetic_range_too(low: int, steps: int, by: int) -> None:
    assert parse_grid(f"steps={low}:{low + steps * by}:+{by}") == ("steps", list(range(low, low + steps * by + 1, by)))


@given(
    lrs=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4, unique=True),
    widths=st.lists(st.sampled_from([16, 32, 64]), min_size=1, unique=True),
    seeds=st.integers(1, 3),
    first=st.integers(0, 5),
)
def test_a_grid_has_every_combination_once(lrs: list[float], widths: list[int], seeds: int, first: int) -> None:
    configs = grid(TINY | {"seed": first}, [("lr", lrs), ("width", widths)], seeds)
    expected = [(lr, w, first + s) for lr in lrs for w in widths for s in range(seeds)]
    assert [(c.lr, c.width, c.seed) for c in configs] == expected
    assert {(c.layers, c.head_dim) for c in configs} == {(1, 8)}


def test_a_scheme_of_the_grid_has_its_own_default_lr() -> None:
    sp, umup = grid(TINY, [("scheme", ["sp", "umup"])], 1)
    assert sp == TrainConfig(scheme="sp", **TINY)
    assert sp.lr != umup.lr


def test_a_value_the_config_refuses_is_named() -> None:
    with pytest.raises(ValueError, match="--width: 20 is not a multiple of --head-dim 8"):
        grid(TINY, [("width", [16, 20])], 1)


def test_random_points_lie_in_their_ranges_and_are_the_same_each_time() -> None:
    grids = ["lr=2^-8:2^8:2", "layers=1:6:+1", "scheme=sp,umup", "warmup=0:1:+0.5"]
    points = draw(grids, 400)
    assert points == draw(grids, 400)
    assert points[:7] == draw(grids, 7)
    assert all(2**-8 <= p["lr"] <= 2**8 for p in points)
    assert {p["scheme"] for p in points} == {"sp", "umup"}
    assert {p["layers"] for p in points} == {1, 2, 3, 4, 5, 6}
    # log-uniform and uniform: the halves have equal shares. 400 draws: 0.025 is a standard deviation of the share, and
    # a uniform lr would have 1/256 of its draws below 1
    assert abs(np.mean([log2(p["lr"]) < 0 for p in points]) - 0.5) < 0.1
    assert abs(np.mean([p["warmup"] < 0.5 for p in points]) - 0.5) < 0.1


def record(config: TrainConfig, loss: float | None) -> dict[str, Any]:
    """What a sweep has of a run."""
    values = {"lr": config.lr, "alpha_res": config.alpha_res, "alpha_ffn_act": config.alpha_ffn_act}
    return {"id": json.dumps([values, config.seed]), "config": values, "loss": loss}


def test_the_best_point_is_that_of_the_best_mean() -> None:
    configs = grid(TINY, [("lr", [1.0, 2.0, 4.0])], 2)
    losses = [2.0, 2.5, 1.0, None, 2.25, 2.24]
    points = ranked([record(c, loss) for c, loss in zip(configs, losses, strict=True)], ["lr"])
    assert [p.values["lr"] for p in points] == [4.0, 1.0, 2.0]
    assert [p.loss for p in points] == [2.245, 2.25, inf]
    text = summary(points)
    assert "4  2.2450 (2.2400 to 2.2500)" in text
    assert "2  diverged (1 of 2)" in text


def test_a_run_that_was_asked_for_twice_counts_once() -> None:
    [config] = grid(TINY, [("lr", [1.0])], 1)
    assert ranked([record(config, 2.0)] * 2, ["lr"])[0].losses == [2.0]


def test_the_summary_says_the_best_of_each_value() -> None:
    configs = grid(TINY, [("lr", [1.0, 2.0]), ("alpha_res", [0.5, 1.0])], 1)
    losses = [3.0, 2.0, 1.5, 2.5]
    text = summary(ranked([record(c, loss) for c, loss in zip(configs, losses, strict=True)], ["lr", "alpha_res"]))
    best_of_lr = text.partition("--lr:\n")[2].splitlines()
    assert best_of_lr[:3] == ["lr  alpha_res  best loss", " 2        0.5  1.5000", " 1          1  2.0000"]


def test_independent_search_finds_the_optimum_of_a_separable_loss() -> None:
    asked: list[TrainConfig] = []

    def train_all(configs: list[TrainConfig]) -> list[dict[str, Any]]:
        asked.extend(configs)
        return [
            record(
                c, log2(c.eta - 0.01 * c.seed) ** 2 + (log2(c.alpha_res) - 1) ** 2 + (log2(c.alpha_ffn_act) + 1) ** 2
            )
            for c in configs
        ]

    five = [0.25, 0.5, 1.0, 2.0, 4.0]
    axes = [("alpha_res", five), ("lr", five), ("alpha_ffn_act", five)]
    found = independent(TINY, axes, 2, train_all)
    assert [stage for stage, _ in found] == ["lr", "alpha_res", "alpha_ffn_act", "combined", "combined, lr again"]
    assert [p.values for _, p in found[:3]] == [{"lr": 1.0}, {"alpha_res": 2.0}, {"alpha_ffn_act": 0.5}]
    assert found[-1][1].values == {"alpha_res": 2.0, "alpha_ffn_act": 0.5, "lr": 1.0}
    assert found[-1][1].loss < 0.001
    assert len(asked) == 2 * (5 + 5 + 5 + 3)
    assert {c.lr for c in asked[10:30]} == {1.0}  # the other axes are searched at the best lr


def test_independent_search_tries_the_neighbouring_lrs_with_the_combined_values() -> None:
    def loss(c: TrainConfig) -> float:
        return (log2(c.eta) + 0.4 * log2(c.alpha_res)) ** 2 - log2(c.alpha_res)  # the larger α_res wants half the lr

    found = independent(
        TINY, [("lr", [0.25, 0.5, 1.0, 2.0]), ("alpha_res", [1.0, 8.0])], 1,
        lambda configs: [record(c, loss(c)) for c in configs],
    )  # fmt: skip
    stages = dict(found)
    assert stages["lr"].values == {"lr": 1.0}
    assert stages["combined"].values == {"alpha_res": 8.0, "lr": 1.0}
    assert stages["combined, lr again"].values == {"alpha_res": 8.0, "lr": 0.5}


def test_at_the_edge_of_the_axis_independent_search_tries_three_lrs_too() -> None:
    asked: list[float] = []

    def train_all(configs: list[TrainConfig]) -> list[dict[str, Any]]:
        asked[:] = [c.eta for c in configs]
        return [record(c, -c.eta) for c in configs]

    independent(TINY, [("lr", [0.25, 0.5, 1.0, 2.0]), ("alpha_res", [1.0])], 1, train_all)
    assert asked == [0.5, 1.0, 2.0]


def test_independent_search_ends_where_nothing_trains() -> None:
    found = independent(
        TINY, [("lr", [1.0, 2.0]), ("alpha_res", [1.0])], 1, lambda configs: [record(c, None) for c in configs]
    )
    assert [(stage, p.loss) for stage, p in found] == [("lr", inf)]


def test_more_runs_than_fit_into_memory_are_refused() -> None:
    """They were put into a list, one by one."""
    axes = [("lr", [1.0] * 2000), ("warmup", [0.5] * 2000)]
    with pytest.raises(ValueError, match=r"^--grid: 4,000,000 runs are more than 1,000,000; name fewer values"):
        grid({}, axes, 1)
    with pytest.raises(ValueError, match=r"^--grid: .* runs are more than"):
        grid({}, [("lr", [1.0])], 10**30)
    with pytest.raises(ValueError, match=r"^--random: .* points are more than 1,000,000; take fewer"):
        draw(["lr=1:2:2"], 10**12)
