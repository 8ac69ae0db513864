"""Records: the numbers that a step and a run leave in metrics.jsonl and result.json, by their names, and how often.

Losses are in nats per token; bits_per_byte is the validation's in the unit in which models of other vocabularies can
be compared.
"""

from dataclasses import dataclass
from math import isfinite, log
from typing import Any

from microumup.config import TrainConfig, option
from microumup.data import Corpus
from microumup.diverged import check_finite
from microumup.limits import check_fields

Record = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """What is written, and how often. None of it changes a result; raises ValueError, naming the option."""

    save_minutes: float = option(5.0, "minutes between two checkpoints at most, which bounds what a run can lose")
    save_every: int = option(0, "steps between two checkpoints, where that is sooner; 0: minutes alone")
    log_every: int = option(0, "steps between two waits for the device's losses; 0: 1 on a CPU, 10 on a GPU")
    eval_every: int = option(0, "steps between two validations, for metrics.jsonl and curve; 0: the end alone")
    log_scales: int = option(0, "steps between two looks at the range of every x, w and dy, for scales; 0: none")

    def __post_init__(self) -> None:
        check_fields(self)


def of_step(config: TrainConfig, step: int, loss: float, norm: float, s: float, speed: float) -> Record:
    """The record of a step: its loss before the update, the learning rate, the effective gradient's norm, tokens per
    second, and whether it was clipped where it can be."""
    record = {"step": step, "loss": loss, "lr": s * config.eta, "grad_norm": norm}
    record |= {"clipped": norm > config.clip} if config.clip else {}
    return record | {"tokens_per_second": round(speed)}


def is_of_step(step: int, record: Record) -> bool:
    """Whether a record that was read is one of that step: of numbers alone, with a loss that is one."""
    numbers = all(type(value) in (int, float, bool) for value in record.values())
    return numbers and record["step"] == step and type(record.get("loss")) is float and isfinite(record["loss"])


def of_validation(config: TrainConfig, corpus: Corpus, step: int, loss: float) -> Record:
    """The record of a validation after so many steps. Raises Diverged when the loss is no number."""
    check_finite(step, "validation loss", loss, config)
    return {"loss_valid": loss, "bits_per_byte": loss / log(2) / corpus.bytes_per_token}


def validation_in(record: Record) -> Record:
    """The record of the validation that was made after a step; empty if none was."""
    return {name: record[name] for name in ("loss_valid", "bits_per_byte") if name in record}


def of_run(config: TrainConfig, records: list[Record], validation: Record, seconds: float) -> Record:
    """The result of a run from the records of all its steps; loss_final is the mean of the last 5 % of them, clipped
    the share of those that were."""
    c, losses = config, [record["loss"] for record in records]
    tokens = c.steps * c.batch_size * c.seq_len
    tail = losses[-max(1, round(0.05 * c.steps)) :]
    return {
        "scheme": c.scheme, "width": c.width, "steps": c.steps, "tokens": tokens,
        "loss_first": losses[0], "loss_final": sum(tail) / len(tail), **validation,
        **({"clipped": sum(record["clipped"] for record in records) / c.steps} if c.clip else {}),
        "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds),
    }  # fmt: skip


def told(result: Record) -> str:
    """The result of a run in words."""
    first, final, valid, bits = (result[name] for name in ("loss_first", "loss_final", "loss_valid", "bits_per_byte"))
    clipped = f"gradients clipped in {result['clipped']:.1%} of the steps\n" if "clipped" in result else ""
    return (
        f"loss {first:.3f} -> {final:.3f} nats per token (mean of the last 5 % of steps)\n"
        f"validation {valid:.3f} nats per token, {bits:.3f} bits per byte\n"
        f"{clipped}{result['seconds']:.1f} s, {result['tokens_per_second']:,} tokens/s"
    )
