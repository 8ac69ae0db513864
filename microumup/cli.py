"""Parts of every command: options from a dataclass and shared ones, numbers like 2^1.5, one line for a bad argument."""

import argparse
import io
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from microumup.files import to_json
from microumup.limits import option_name
from microumup.parametrization import ALIASES

# What other programs call our options
ELSEWHERE = {
    "--learning-rate": "--lr", "--eta": "--lr", "--epochs": "--steps", "--iters": "--steps", "--max-iters": "--steps",
    "--block-size": "--seq-len", "--context": "--seq-len", "--d-model": "--width", "--hidden-size": "--width",
    "--n-embd": "--width", "--depth": "--layers", "--n-layer": "--layers", "--data": "--text", "--dataset": "--text",
    "--output": "--out", "--output-dir": "--out", "--gpu": "--device", "--cpu": "--device", "--model": "--scheme",
}  # fmt: skip


def perhaps(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` of what is known and begins with the word, or looks much like it; empty where none does."""
    known = list(known)
    near = [name for name in known if name.startswith(word)] or get_close_matches(word, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near and word.strip("-") else ""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line, and ends with 2. `--help` leaves out what is `rare`."""

    def __init__(self, command: str, description: str, *, operands: str = "", examples: str = "") -> None:
        super().__init__(
            prog=f"microumup {command}", usage=" ".join(f"microumup {command} {operands} [options]".split()),
            allow_abbrev=False,
            description=description, epilog=examples and f"examples:\n{examples}",
            formatter_class=_Formatter,
        )  # fmt: skip
        self.rare: dict[argparse.Action, str] = {}  # options that only --help-all explains, and its words

    def add_rare(self, *actions: argparse.Action) -> None:
        """Leave these options to --help-all."""
        if not self.rare:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="explain every option, and exit")
        for action in actions:
            self.rare[action], action.help = action.help or "", argparse.SUPPRESS

    def format_help(self) -> str:
        """The help; where options are left out, its last line says which, and how to have them explained."""
        hidden = [a.option_strings[0] for a in self._actions if a in self.rare and a.help == argparse.SUPPRESS]
        text = f"{len(hidden)} more, explained by --help-all: {', '.join(hidden)}"
        return super().format_help() + (f"\n{textwrap.fill(text, 79, break_on_hyphens=False)}\n" if hidden else "")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's; it takes the value of `--seed=--` for an empty list, which here is refused."""
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            if word.startswith("--") and word.endswith("=--"):
                self.error(f"{word.removesuffix('=--')}: -- is no value")
        found, strange = self.parse_known_args(words, namespace)
        if strange:
            self.error(f"unrecognized arguments: {' '.join(strange)}{self._mend(strange[0], words)}")
        return found

    def _mend(self, strange: str, words: list[str]) -> str:
        """What may have been meant by a word that no option takes."""
        options = self._option_string_actions
        if strange.startswith("-"):
            written = "--" + strange.lstrip("-").partition("=")[0].replace("_", "-")
            meant = [ELSEWHERE[written]] if ELSEWHERE.get(written) in options else []
            near = perhaps(meant[0] if meant else written, meant or (name for name in options if name[:2] == "--"))
            return near or f"; see {self.prog} --help"
        before = next((word for word in reversed(words[: words.index(strange)]) if word in options), "")
        if not before or options[before].nargs is not None:
            return f"; see {self.prog} --help"
        return f"; {before} takes one word, {options[before].metavar or options[before].dest.upper()}"

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print it. argparse is silent about help that could not be written; here that is an error."""
        with suppress(*[OSError] * (file is not sys.stdout)):
            print(message, end="", file=file)

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.removeprefix("argument ").split())  # one line, whatever was typed
        if message.endswith("expected one argument"):
            option = message.partition(":")[0].partition("/")[0]
            message += f"; if it begins with a -, write {option}=-…"
        if message.startswith("the following arguments are required"):
            message += f"; see {self.prog} --help"
        self.exit(2, f"{self.prog}: {message}\n")

    def complain(self, message: str) -> None:
        """Say on stderr, in a line, what went wrong."""
        print(f"{self.prog}: {message}", file=sys.stderr)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Breaks no line within mup-table2, which is one word."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        for action, text in parser.rare.items():
            action.help = text
        parser.print_help()
        parser.exit()


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
        value = float(base) ** float(exponent) if power else float(base)
        if isinstance(value, float):  # a power of a negative number may be complex
            return value
        raise ValueError
    except (ValueError, OverflowError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write 1.5, 2^1.5 or 2**-7") from None


def whole(text: str) -> int:
    """`1000`."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; write it in digits, as 1000") from None


def few(text: str) -> int:
    """A whole number of things that are all in memory at once, or all processes: no more than 10,000."""
    if (number := whole(text)) > 10_000:
        raise argparse.ArgumentTypeError(f"{number:,} are too many; at most 10,000")
    return number


def numbers(text: str) -> list[int]:
    """`0,1,2`: whole numbers from 0 on, no two alike."""
    found = [whole(part) for part in text.split(",")]
    if min(found) < 0 or len({*found}) < len(found):
        raise argparse.ArgumentTypeError(f"{text}: numbers from 0 on, each of them once; write 0,1,2")
    return found


def absolute(text: str) -> str:
    """The path of a file, the same from another directory too. Each `..` stays: it may follow a link."""
    try:
        return str(Path(text).absolute())
    except OSError as error:  # the working directory is gone
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}; give its whole path") from None


def picture(text: str) -> Path:
    """A path whose suffix names a kind of picture."""
    if Path(text).suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text} does not end with .png, .svg or .pdf")
    return Path(text)


# What several commands take: their words, in which {} is what a command says of its own, and the settings
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "seeds": ("{} (default: %(default)s)", {"type": few, "default": 3, "metavar": "N"}),
    "seed": ("{} (default: %(default)s)", {"type": whole, "default": 0, "metavar": "N"}),
    "workers": ("processes{} (default: %(default)s)", {"type": few, "default": os.cpu_count() or 1, "metavar": "N"}),
    "cluster": ("run as tasks of this dask scheduler instead", {"metavar": "tcp://HOST:PORT"}),
    "device": ("auto, cpu or gpu (default: %(default)s)", {"default": "auto", "metavar": "NAME"}),
    "devices": (
        "GPUs to share out the runs to, one at a time each, as 0,1,2,3, instead of --workers and --device; a cluster's "
        "workers have theirs by CUDA_VISIBLE_DEVICES",
        {"type": numbers, "metavar": "N,N…"},
    ),
    "plot": ("draw to FILE, a .png, .svg or .pdf", {"type": picture, "metavar": "FILE"}),
    "quiet": ("print nothing but errors, and --json's line", {"action": "store_true"}),
    "json": ("end with a line of JSON: {}", {"action": "store_true"}),
}


def shared(parser: argparse._ActionsContainer, *names: str, **words: str) -> None:
    """Add options of SHARED to a parser or a group: `names`, and those that need the command's own `words`.

    Another default is a matter of `set_defaults`; the help has it.
    """
    for name in (*names, *words):
        text, settings = SHARED[name]
        parser.add_argument(f"--{name}", help=text.format(words.get(name, "")), **settings)


def add_options(parser: Parser, config: type) -> None:
    """An option for every field of the dataclass `config`, in a group for it and one for each dataclass it extends.

    Those that are not common are rare to the parser. Fields that were not given are absent from the parsed namespace.
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
            settings |= {"nargs": "+", "action": "extend", "type": absolute, "metavar": "FILE"}
        option = group.add_argument(*map(option_name, names), dest=field.name, default=argparse.SUPPRESS, **settings)
        if not field.metadata["common"]:
            parser.add_rare(option)


def given(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of `config` that were given on the command line."""
    names = {field.name for field in fields(config)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in vars(args).items() if name in names}


def json_line(args: argparse.Namespace, content: object) -> None:
    """Print `content` as a line of JSON, where --json asks for it."""
    if args.json:
        print(to_json(content))


def say(quiet: bool) -> Callable[..., None]:
    """`print`, or nothing when quiet."""
    return (lambda *_, **__: None) if quiet else print


def run(main: Callable[[], int]) -> NoReturn:
    """End the process with `main`'s status; with one line and 1 when memory is out or our output cannot be written, in
    silence when it has no reader any more, with 130 after Ctrl-C."""
    settle()
    status: Any = 1
    try:
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except MemoryError as error:
        _complain(f"not enough memory ({' '.join(str(error).split())}); take smaller sizes")
        status = 1
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _complain(str(error) if error.filename else f"the output cannot be written ({error.strerror})")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try once more to write what is left
        status = 1
    sys.exit(status)


def settle() -> None:
    """Make the standard streams fit for whatever is written: a closed one leads nowhere, instead of into the next file
    that is opened; what an encoding lacks becomes a question mark. Pictures are for files, not for a window."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        elif stream is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "r" if number == 0 else "w", closefd=False)))
    os.environ["MPLBACKEND"] = "agg"


def _complain(text: str) -> None:
    with suppress(OSError):
        print(f"microumup: {text}", file=sys.stderr)
