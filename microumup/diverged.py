"""The end of a run whose numbers are none any more, and what to try instead."""

from dataclasses import fields
from math import isfinite

from microumup.config import ModelConfig, TrainConfig
from microumup.limits import option_name


class Diverged(Exception):
    """A number that has to be finite is not. `step` counts the updates before it was found, None where nobody knows."""

    def __init__(self, step: int | None, what: str, value: float, config: ModelConfig) -> None:
        where = "" if step is None else f" at step {step}"
        super().__init__(f"diverged: the {what} is {value}{where}; {advice(step, what, config)}")
        self.step = step


def check_finite(step: int | None, what: str, value: float, config: ModelConfig) -> None:
    """Raise Diverged when the value of `what` is NaN or infinite."""
    if not isfinite(value):
        raise Diverged(step, what, value, config)


def advice(step: int | None, what: str, config: ModelConfig) -> str:
    """The options that may have done it, to be tried otherwise: at step 0 no learning rate has."""
    tries = []
    if isinstance(config, TrainConfig):
        if what == "gradient's norm" and config.loss_scale > 1:
            tries.append(f"a lower --loss-scale than {config.loss_scale:g}")
        if step != 0:
            tries.append(f"a lower --lr than {config.eta:g}")
        if step != 0 and config.warmup < 1:
            tries.append("a longer --warmup")
    unusual = [f.name for f in fields(ModelConfig) if f.type is float and getattr(config, f.name) != f.default]
    if unusual and (step == 0 or not tries):
        tries.append(f"{' and '.join(map(option_name, unusual))} nearer to the default")
    return f"try {' or '.join(tries)}" if tries else "look at metrics.jsonl for where it began"
