from typing import Any

import pytest

from microumup import config, optim
from microumup.config import PRESETS, ModelConfig, TrainConfig

BAD_NETWORKS = {
    "--scheme: 'mupp' is unknown": {"scheme": "mupp"},
    "--width: 60 is not a multiple of --head-dim 16": {"width": 60},
    "--width: 0 is too small": {"width": 0},
    "--width: 6 is no multiple of 4": {"width": 6, "head_dim": 2},
    "--head-dim: 3 is odd": {"head_dim": 3, "width": 12},
    "--layers: -1 is too small": {"layers": -1},
    "--seq-len: 1 is too small": {"seq_len": 1},
    "--alpha-res: -1.0 is not a positive": {"alpha_res": -1.0},
    "--alpha-res: nan is not a positive": {"alpha_res": float("nan")},
    "--norm-eps: -1.0 is not a positive": {"norm_eps": -1.0},
    "--sigma-init: not a hyperparameter of --scheme umup": {"sigma_init": 2.0},
    "--alpha-res: not a hyperparameter of --scheme mup": {"scheme": "mup", "alpha_res": 2.0},
    "--base-width: not a hyperparameter of --scheme sp": {"scheme": "sp", "base_width": 64},
    "--embedding-lr-rule: not a hyperparameter of --scheme sp": {"scheme": "sp", "embedding_lr_rule": False},
    "there is no recipe 'fp9'": {"fp8": "fp9"},
}


@pytest.mark.parametrize(("message", "options"), list(BAD_NETWORKS.items()))
def test_a_network_that_cannot_be_is_refused_by_name(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ModelConfig(**options)
    assert "\n" not in str(error.value)


def test_presets_are_configs() -> None:
    assert TrainConfig(**PRESETS["tiny"]) == TrainConfig()
    paper = TrainConfig(**PRESETS["paper"])
    assert (paper.width, paper.layers, paper.head_dim, paper.seq_len, paper.batch_size) == (256, 4, 64, 256, 64)
    assert (paper.steps, round(paper.warmup * paper.steps)) == (8192, 2000)
    assert (paper.vocab_size, paper.weight_decay) == (32000, 2**-13)
    assert TrainConfig(**PRESETS["laptop"]).width == 128


def test_the_default_learning_rate_is_the_schemes() -> None:
    assert TrainConfig().lr == 1.5
    assert TrainConfig(scheme="mup").lr == 2**-7.5


BAD_TRAININGS = {
    "--steps: -1 is too small": {"steps": -1},
    "--batch-size: 0 is too small": {"batch_size": 0},
    "--seed: -1 is too small": {"seed": -1},
    "--warmup: 1.5 is no share": {"warmup": 1.5},
    "--weight-decay: -0.1 is no share": {"weight_decay": -0.1},
    "--lr: 0.0 is not a positive": {"lr": 0.0},
    "--lr: nan is not a positive": {"lr": float("nan")},
    "--optimizer: 'lion' is unknown": {"optimizer": "lion"},
    "--decay: 'none' is unknown": {"decay": "none"},
    "--lr: name one for --optimizer sgd": {"optimizer": "sgd"},
}


@pytest.mark.parametrize(("message", "options"), list(BAD_TRAININGS.items()))
def test_a_training_that_cannot_be_is_refused_by_name(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf")])
def test_a_loss_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"--loss-scale: .* is not a positive finite number"):
        TrainConfig(loss_scale=scale)


def test_more_threads_than_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="--threads: 5 is more than --batch-size 4"):
        TrainConfig(batch_size=4, threads=5)


def test_every_reading_of_weight_decay_that_a_config_takes_has_a_formula() -> None:
    assert tuple(optim.DECAYS) == config.DECAYS
