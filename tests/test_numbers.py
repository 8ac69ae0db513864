"""Numbers of any kind, ranges of hyperparameters, and sizes: plain, refused by name, or what they were meant to be."""

import cProfile
from collections import Counter
from dataclasses import fields
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused

from microumup import limits
from microumup.config import PRESETS, ModelConfig, TrainConfig
from microumup.limits import check_memory, option_name
from microumup.parametrization import SCHEMES
from microumup.plan import gradient_constants, plan
from microumup.train import main

FLOATS = [f.name for f in fields(TrainConfig) if f.type in (float, float | None)]
WHOLE = [f.name for f in fields(TrainConfig) if f.type is int]
OWNERS = {name: scheme for scheme, row in SCHEMES.items() for name in row.hyperparameters}


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, np.uint8, np.array, int])
@pytest.mark.parametrize("name", FLOATS)
def test_a_number_of_numpy_becomes_one_of_python(name: str, kind: Any) -> None:
    """A float64 of NumPy made float64 of a float32 model."""
    config = TrainConfig(**{"scheme": OWNERS.get(name, "umup"), name: kind(0 if name in BETAS else 1)})
    assert type(getattr(config, name)) is float


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.array])
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_of_numpy_becomes_one_of_python(name: str, kind: Any) -> None:
    config = TrainConfig(**{"scheme": OWNERS.get(name, "umup"), "threads": 1, name: kind(getattr(TrainConfig, name))})
    assert type(getattr(config, name)) is int


BETAS = ("beta1", "beta2")  # for which 1 would be no mean at all


@pytest.mark.parametrize("name", BETAS)
def test_a_mean_that_takes_nothing_in_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{option_name(name)}: 1.0 is no share; use 0 to 1$"):
        TrainConfig(**{name: 1})


SENSELESS = [1j, np.complex64(1), "1", b"1", [1.0], object(), np.ones(2), 10**400, float("nan"), float("inf"), -1.0]


@pytest.mark.parametrize("value", SENSELESS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option_name(name)}: ") as error:
        TrainConfig(**{"scheme": OWNERS.get(name, "umup"), name: value})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("value", [True, np.bool(True), 1.0, np.float64(2), "2", None, 10**400, -1])
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_whole_number_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option_name(name)}: "):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("value", [1e308, 1e7, 1e-7, 5e-324])
@pytest.mark.parametrize("name", [name for name in FLOATS if name in OWNERS])
def test_a_hyperparameter_has_a_range(name: str, value: float) -> None:
    """Factors overflowed, or were divided by 0, for `--alpha-attn 1e308`."""
    message = rf"^{option_name(name)}: .* is not a positive finite number of 1e-06 to 1e\+06$"
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"scheme": OWNERS[name], name: value})


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [1e-6, 1e6])
def test_at_the_ends_of_the_ranges_every_factor_is_a_finite_number(scheme: str, value: float) -> None:
    floats = [name for name in SCHEMES[scheme].hyperparameters if ModelConfig.__dataclass_fields__[name].type is float]
    sizes = {"layers": 3, "width": 2**10, "head_dim": 2, "seq_len": 2**14, "vocab_size": 2**16}
    numbers = plan(ModelConfig(scheme=scheme, **sizes, **dict.fromkeys(floats, value), eta_emb=value), 2**20)

    def walk(x: Any) -> None:
        if isinstance(x, float):
            assert isfinite(x)
            assert x != 0
            assert 1e-30 < abs(x) < 1e30
        for part in x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else ():
            walk(part)

    walk(tuple(numbers)[1:])
    assert all(0 < abs(c) < inf for c in gradient_constants(numbers).values())


def test_planning_grows_with_the_layers_and_no_faster() -> None:
    """It took 19 s at 1,000 layers."""
    calls = Counter[int]()
    for layers in (10, 100):
        profile = cProfile.Profile()
        profile.runcall(plan, ModelConfig(layers=layers), 64)
        calls[layers] = sum(row.callcount for row in profile.getstats())
    assert calls[100] < 11 * calls[10]


@pytest.mark.parametrize(
    ("sizes", "named"),
    [({"width": 2**20}, "--width"), ({"layers": 10_000, "width": 2**14}, "--layers"), ({"seq_len": 2**24}, "--seq-len"),
     ({"batch_size": 2**24}, "--batch-size"), ({"vocab_size": 2**24, "width": 2**12}, "--vocab-size")],
)  # fmt: skip
def test_sizes_nobody_has_memory_for_are_refused(
    sizes: dict[str, int], named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [word for name, size in sizes.items() for word in (option_name(name), str(size))]
    error = refused(main, argv)
    assert f" {named}: " in error
    assert "GB of memory or more" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_sensible_is_not_refused(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a laptop of 8 GB; the estimate is of what is needed at least."""
    monkeypatch.setattr(limits, "available_memory", lambda: 8 << 30)
    check_memory(TrainConfig(**PRESETS[preset]))
