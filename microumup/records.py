"""Records: the numbers that a step and a whole run leave, by their names in metrics.jsonl and result.json.

Losses are in nats per token; bits_per_byte is the validation's in the unit in which models of other vocabularies can
be compared.
"""

from math import log
from typing import Any

from microumup.config import TrainConfig
from microumup.data import Corpus
from microumup.diverged import check_finite

Record = dict[str, Any]


def of_step(config: TrainConfig, step: int, loss: float, norm: float, s: float, speed: float) -> Record:
    """The record of a step: its loss before the update, the learning rate, the effective gradient's norm, tokens per
    second, and whether it was clipped where it can be."""
    record = {"step": step, "loss": loss, "lr": s * config.eta, "grad_norm": norm}
    record |= {"clipped": norm > config.clip} if config.clip else {}
    return record | {"tokens_per_second": round(speed)}


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
