"""Older versions: how what they wrote differs from what is written now. A new option is added to NEWER, and no more."""

from dataclasses import fields
from typing import Any

from microumup.config import TrainConfig
from microumup.limits import option_name

ADDED = ("decay", "loss_scale", "threads")  # options that the first configs lack; their defaults are what was done
NEWER = ("valid", "micro_batch", "beta1", "beta2", "adam_eps", "clip", "kernels", "tf32")  # likewise of later ones
RETIRED = {"tied_embeddings": False}  # options that are no more, with the value that says the same as their absence


def without_retired(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a config that an older version may have written, without those that are no more.

    Raises ValueError where one of these has another value than the only one that ever ran.
    """
    for name, only in RETIRED.items():
        if name in options and options[name] != only:
            raise ValueError(f"{option_name(name)}: {options[name]} cannot be loaded; the option was only ever {only}")
    return {name: options[name] for name in options if name not in RETIRED}


def completed(options: dict[str, Any], recorded: bool) -> tuple[dict[str, Any], list[str]]:
    """All options of a TrainConfig, and those that were not `recorded` and had to be assumed, in words.

    Nothing else that is missing is ever taken for its default: raises ValueError for it, and for unknown options.
    """
    options = without_retired(options)
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    absent = {*NEWER, *(() if recorded else ADDED)} - {*options}
    if wrong := sorted(options.keys() - defaults) or sorted(defaults.keys() - {*options, *absent}):
        raise ValueError(f"{'unknown' if wrong[0] in options else 'missing'}: {', '.join(wrong)}")
    assumed = [f"{name} {defaults[name]}" for name in ADDED if name in absent]
    return options | {name: defaults[name] for name in absent}, assumed
