"""`microumup train --from-sweep DIR`: the command train, with the learning rate that transfer finds in a sweep."""

from dataclasses import replace
from pathlib import Path

from microumup import files, train
from microumup.config import TrainConfig
from microumup.lab.drifts import NoEvidence
from microumup.lab.search import show_value
from microumup.lab.sweep import plain
from microumup.lab.transfer import AXES, command, predict, read_sweep
from microumup.limits import option_name
from microumup.records import Record

OWN = (*AXES, "lr", "seed", "threads", "valid", "micro_batch", "kernels", "tf32")  # in which a run may differ from it


def tune(sweep_dir: Path, config: TrainConfig, has_lr: bool) -> tuple[TrainConfig, Record]:
    """The config with η by `transfer` from a sweep, and for its config.json where that comes from.

    Raises ValueError where transfer refuses, for a run that has an η, or that differs from the sweep in more than its
    sizes.
    """
    if has_lr:
        raise ValueError("--lr: --from-sweep finds it; leave out the one or the other")
    try:
        found = predict(read_sweep(sweep_dir), {axis: getattr(config, axis) for axis in AXES})
    except NoEvidence as error:
        raise ValueError(f"--from-sweep: {error}") from None
    here, there = plain(config), plain(found.target)
    if other := [name for name in here if name not in OWN and here[name] != there[name]]:
        differs = f"{option_name(other[0])} is {show_value(here[other[0]])}, in the sweep {show_value(there[other[0]])}"
        raise ValueError(f"--from-sweep: {differs}; give the sweep's options: {command(found.target)}")
    for note in found.notes:
        files.note(note)
    moves = {move.axis: move for move in found.moves}
    return replace(config, lr=found.target.eta), {
        "path": str(sweep_dir.resolve()), "width": found.source.width, "log2_optimum": found.tuned.eta.value,
        "log2_lr": found.eta, "moves": moves,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """The command `train`."""
    return train.main(argv, tune)
