"""config.json: every option of a run, its texts by checksum, and how those of older versions are read."""

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from microumup import __version__, checkpoint
from microumup.config import TrainConfig
from microumup.limits import option_name

ADDED = ("decay", "loss_scale", "threads")  # options that the first configs lack; their defaults are what was done
NEWER = ("valid", "micro_batch", "beta1", "beta2", "adam_eps", "clip", "kernels", "tf32")  # likewise of later ones
RETIRED = {"tied_embeddings": False}  # options that are no more, with the value that says the same as their absence


class Command(NamedTuple):
    """Options of the command `train` that are not a config's; a run that is resumed keeps them."""

    save_every: int = 10**9  # steps between two checkpoints, where the minutes are not sooner
    save_minutes: float = 5.0  # between two checkpoints at most, which bounds what a run can lose
    log_scales: int = 0  # steps between two looks at the ranges; 0: none
    log_every: int = 0  # steps between two waits for the device; 0: 1 on a CPU, 10 on a GPU
    eval_every: int = 0  # steps between two validations; 0: at the end alone
    from_sweep: dict[str, Any] | None = None  # where η comes from, if from a sweep


def without_retired(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a config that an older version may have written, without those that are no more.

    Raises ValueError where one of these has another value than the only one that ever ran.
    """
    for name, only in RETIRED.items():
        if name in options and options[name] != only:
            raise ValueError(f"{option_name(name)}: {options[name]} cannot be loaded; the option was only ever {only}")
    return {name: options[name] for name in options if name not in RETIRED}


def read_config(run_dir: Path) -> tuple[TrainConfig, Command, dict[str, Any]]:
    """Config and command of the run in a directory, and its record of texts. Raises ValueError where there is none.

    An older version's config may lack what was ADDED since: the record says what is `assumed`. Nothing else that is
    missing is ever taken for its default.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise ValueError(f"{run_dir} holds no run, there is no config.json in it")
    names = {f.name for f in fields(TrainConfig)}
    try:
        options = checkpoint.read_record(path)
        id = checkpoint.sealed(options)["crc32"]
        record = options.pop("run", {})
        options = without_retired(options)
        if wrong := sorted(options.keys() - names) or sorted(names - {*options, *NEWER, *(() if record else ADDED)}):
            raise ValueError(f"{'unknown' if wrong[0] in options else 'missing'}: {', '.join(wrong)}")
        config = TrainConfig(**options | {name: tuple(options.get(name, ())) for name in ("text", "valid")})
        command = Command(**{name: record[name] for name in Command._fields if name in record})
    except (ValueError, KeyError, TypeError) as error:
        what = checkpoint.one_line(error)
        raise ValueError(f"{path} is not a config of microumup {__version__} ({what}); restore it") from None
    if not record:
        assumed = [f"{name} {getattr(config, name)}" for name in ADDED if name not in options]
        assumed += ["no more --log-scales"] * (run_dir / "scales.jsonl").exists()
        record = {"assumed": f"{path} is of an older version; assumed: {', '.join([*assumed, 'texts as they were'])}"}
    return config, command, record | {"id": id}


def load_config(run_dir: Path) -> TrainConfig:
    """The config of a run. Raises ValueError when there is none."""
    return read_config(run_dir)[0]


def unfinished(run_dir: Path) -> TrainConfig:
    """The config of a run that has no result yet. Raises ValueError, naming --resume, when it has, or is none."""
    try:
        config = load_config(run_dir)
    except ValueError as error:
        raise ValueError(f"--resume: {error}") from None
    if (run_dir / "result.json").exists():
        raise ValueError(f"--resume: the run in {run_dir} is finished; see its result.json")
    return config


def identity(run_dir: Path) -> str:
    """The checksum of the config in a run directory, which goes into that of each of its lines; "" without a config."""
    return str(read_config(run_dir)[2]["id"]) if (run_dir / "config.json").exists() else ""
