"""What all commands share: options from a dataclass, numbers like 2^1.5, and one line for a bad argument."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from microumup.config import option_name
from microumup.parametrization import ALIASES


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line, and ends with 2."""

    def __init__(self, command: str, description: str, *, operands: str = "", examples: str = "") -> None:
        super().__init__(
            prog=f"microumup {command}", usage=" ".join(f"microumup {command} {operands} [options]".split()),
            allow_abbrev=False,
            description=description, epilog=examples and f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")


@contextmanager
def bad_input(parser: Parser) -> Iterator[None]:
    """Turn a ValueError or OSError, by which everything reports bad input, into the parser's one line and exit 2."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output is gone: no fault of the arguments
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))


def number(text: str) -> float:
    """`1.5`, `2^1.5` or `2**-7`."""
    base, power, exponent = text.replace("**", "^").partition("^")
    try:
        return float(base) ** float(exponent) if power else float(base)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write 1.5, 2^1.5 or 2**-7") from None


def whole(text: str) -> int:
    """`1000`."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; write 1000") from None


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """An option for every field of the dataclass `config`, in a group for it and one for each dataclass it extends.

    Fields that were not given are absent from the parsed namespace.
    """
    base = config.__mro__[1]
    inherited = {field.name for field in fields(base)} if is_dataclass(base) else set()
    if inherited:
        add_options(parser, base)
    group = parser.add_argument_group((config.__doc__ or "").partition(".")[0].lower())
    for field in fields(config):
        if field.name in inherited:
            continue
        names = [field.name, *(alias for alias, name in ALIASES.items() if name == field.name)]
        text = field.metadata["help"]
        if field.default not in (None, ()):
            text += f" (default: {field.default:{'g' if field.type is float else ''}})"
        settings: dict[str, Any] = {"help": text.replace("%", "%%")}
        if field.type is bool:
            settings["action"] = argparse.BooleanOptionalAction
            settings["help"] = settings["help"].replace("True", "on").replace("False", "off")
        elif field.type in (int, float, float | None):
            settings |= {"type": whole if field.type is int else number, "metavar": "N" if field.type is int else "X"}
        elif field.type is str:
            settings["metavar"] = "NAME"
        else:
            settings |= {"nargs": "+", "metavar": "FILE"}
        group.add_argument(*map(option_name, names), dest=field.name, default=argparse.SUPPRESS, **settings)


def given(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of `config` that were given on the command line."""
    names = {field.name for field in fields(config)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in vars(args).items() if name in names}


def say(quiet: bool) -> Callable[..., None]:
    """`print`, or nothing when quiet."""
    return (lambda *_, **__: None) if quiet else print


def run(main: Callable[[], int]) -> NoReturn:
    """End the process with `main`'s status; 130 after Ctrl-C, and silently when the reader of our output is gone."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
