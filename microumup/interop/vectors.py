"""Golden vectors: u-µP in files, for implementations in any language.

    DIR/index.json                what there is: a line of JSON for every case, with all its factors and settings
    DIR/inputs/OP.safetensors     arrays CASE/NAME to compute with
    DIR/expected/OP.safetensors   arrays CASE/NAME that should come out
    DIR/outputs/OP.safetensors    the same names, written by the program that is to be checked

`write` makes the first three, the same bytes on every run. `check` holds outputs against expected and says of every
failure what was expected, what received, and the likely cause. No random generator has to be matched: inputs are files.
"""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load, save

from microumup import cli
from microumup.config import ModelConfig
from microumup.files import one_line, read_bytes, to_json, write_atomically
from microumup.interop.cases import PAIRS, RUNS, Arrays, Case, all_cases, expected
from microumup.interop.judge import TOLERANCES, Finding, explained, judge, table, tolerance_of
from microumup.parametrization import SCHEMES
from microumup.plan import plan

VERSION = 1
FORMAT = "microumup vectors"
MOST_BYTES = 1 << 26  # of one file that is read; ours have less than 1 MB
MOST_CASES = 10_000
MOST_ELEMENTS = 1 << 13  # of an input array; ours have less than 2000, and attention makes a square of them
LARGEST_INT = 1 << 16  # in the settings of a case: nothing that is built from them gets large
READ_ME = (
    "Every line of `cases` is a case: read its `inputs` from inputs/FILE as CASE/NAME, compute, and write what "
    "`outputs` lists to outputs/FILE under the same names, with the same shapes and dtypes. Then run "
    "`python -m microumup vectors check DIR`. y is the op's output, dNAME the gradient of the input NAME for the "
    "cotangent dy. `scale` has the factors to use: y of the output, dx of the gradient of every activation, dw of the "
    "weight; they are what u-µP gives for the other settings. A residual layer is y = a f(x) + b x, f(x) = x wT; "
    "its gradient enters f times dbranch, and leaves it times dbase. Weights are (fan_out, fan_in), an embedding "
    "(V, D); heads are neighbours in D; RoPE turns neighbours (2i, 2i+1); batch_tokens counts tokens, and seq_len is "
    "the training length, whatever the input's. A model trains with AdamW at constant eta times each weight's C, "
    "betas 0.9 and 0.999, eps 1e-8, and takes weight_decay of each weight in an update, whatever eta; "
    "logits, loss and grad are those of the first batch, after1 are the weights behind it, losses and trained those of "
    "all. Not everything has to be written: `check --only 'linear*'` looks at these cases alone."
)


def write(directory: Path, cases: Iterable[Case] | None = None) -> list[Case]:
    """Write index, inputs, expected outputs and Plans; the cases that were written."""
    cases = list(all_cases()) if cases is None else list(cases)
    lines = []
    files: dict[str, dict[str, Arrays]] = {}
    for case in cases:
        true = expected(case)
        file = files.setdefault(case.op, {"inputs": {}, "expected": {}})
        for kind, arrays in (("inputs", case.inputs), ("expected", true)):
            file[kind] |= {f"{case.name}/{name}": a.copy() for name, a in arrays.items()}
        lines.append(json.dumps({
            "name": case.name, "op": case.op, "file": f"{case.op}.safetensors", "dtype": case.dtype,
            "schemes": case.schemes, "settings": case.settings, "inputs": list(case.inputs), "outputs": list(true),
            "tolerances": sorted({tolerance_of(case, name) for name in true}),
        }, ensure_ascii=False))  # fmt: skip
    head = {
        "format": FORMAT, "version": VERSION, "read_me": READ_ME,
        "tolerances": {name: t._asdict() for name, t in TOLERANCES.items()},
    }  # fmt: skip
    text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    text += ',\n "cases": [\n' + ",\n".join(lines) + "\n ]\n}\n"
    for kind in ("inputs", "expected"):
        (directory / kind).mkdir(parents=True, exist_ok=True)
        for op, file in files.items():
            if file[kind]:
                _write(directory / kind / f"{op}.safetensors", save(dict(sorted(file[kind].items()))))
    plans = {
        case.name: plan(ModelConfig(**case.settings["config"]), case.settings["batch_tokens"])
        for case in cases if case.op == "plan"
    }  # fmt: skip
    _write(directory / "plans.json", (to_json(plans) + "\n").encode())
    _write(directory / "index.json", text.encode())
    return cases


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


# ---------------------------------------------------------------------------------------------------------------------
# Reading what others wrote


def read(directory: Path) -> list[Case]:
    """The cases that an index in DIR describes, with their inputs. Raises ValueError, in one line, for what is none.

    The index may come from anyone: it names files in DIR alone, its sizes are bounded, and nothing in it is run.
    """
    content = _content(directory, "index.json")
    try:
        index = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{directory / 'index.json'}: not JSON ({one_line(error)})") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{directory / 'index.json'}: not an index of {FORMAT}; make one with `vectors write DIR`")
    if index.get("version") != VERSION:
        raise ValueError(f"{directory / 'index.json'}: version {index.get('version')!r}, this program reads {VERSION}")
    entries = index.get("cases")
    if not isinstance(entries, list) or len(entries) > MOST_CASES:
        raise ValueError(f"{directory / 'index.json'}: cases is no list of at most {MOST_CASES}")
    loaded: dict[str, Arrays] = {}
    cases = []
    for entry in entries:
        try:
            cases.append(_case(directory, entry, loaded))
        except (KeyError, TypeError, AttributeError) as error:
            name = entry.get("name") if isinstance(entry, dict) else entry
            raise ValueError(f"{directory / 'index.json'}: case {str(name)[:80]!r} is damaged ({error!r})") from None
    if len({case.name for case in cases}) < len(cases):
        raise ValueError(f"{directory / 'index.json'}: two cases have one name")
    return cases


def _case(directory: Path, entry: Any, loaded: dict[str, Arrays]) -> Case:
    name, op, file = entry["name"], entry["op"], entry["file"]
    if op not in PAIRS and op not in RUNS:
        raise ValueError(f"{directory / 'index.json'}: case {str(name)[:80]!r} has the unknown op {str(op)[:80]!r}")
    if not all(isinstance(text, str) and re.fullmatch(r"[\w.-]{1,80}", text) for text in (name, *entry["inputs"])):
        raise TypeError("a name is not of letters, digits, _ . -")
    if not isinstance(file, str):
        raise TypeError("file is no text")
    if file not in loaded and entry["inputs"]:
        loaded[file] = arrays(directory, f"inputs/{file}")
    found: Arrays = {}
    for key in entry["inputs"]:
        if (tensor := loaded[file].get(f"{name}/{key}")) is None:
            raise ValueError(f"{directory / 'inputs' / file}: {name}/{key} is missing")
        if tensor.size > MOST_ELEMENTS:
            raise ValueError(f"{directory / 'inputs' / file}: {name}/{key} has {tensor.size:,} elements, too many")
        found[str(key)] = tensor
    settings = _bounded(entry["settings"], str(name))
    if not isinstance(settings, dict):
        raise TypeError("settings are no object")
    if config := settings.get("config"):
        if set(config) - set(ModelConfig.__dataclass_fields__):
            raise TypeError("config has unknown names")
        if max(config["layers"], config["width"] // 64, config["vocab_size"] // 1024) > 64:
            raise ValueError(f"{directory / 'index.json'}: case {name!r} is of a model larger than any of ours")
        ModelConfig(**config)
    return Case(name, op, str(entry["dtype"]), tuple(map(str, entry["schemes"])), settings, found)


def _bounded(x: Any, name: str, depth: int = 0) -> Any:
    """x, if it is JSON of our kind and nothing in it is large. Raises ValueError where something is."""
    if isinstance(x, dict | list) and depth < 4 and len(x) < 1000:
        for item in x.values() if isinstance(x, dict) else x:
            _bounded(item, name, depth + 1)
    elif not (isinstance(x, str | bool | float) or (isinstance(x, int) and abs(x) <= LARGEST_INT)):
        raise ValueError(f"index.json: case {name[:80]!r} has a setting {str(x)[:40]} that no case of ours has")
    return x


def arrays(directory: Path, file: str) -> Arrays:
    """The arrays of a safetensors file in DIR. Raises ValueError, in one line, where it is none."""
    content = _content(directory, file)
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory / file}: not a safetensors file of NumPy's dtypes ({one_line(error)})") from None


def _content(directory: Path, file: str) -> bytes:
    """The bytes of a file in DIR: a plain name, at most one folder down, no link, of bounded size."""
    if not re.fullmatch(r"((inputs|outputs|expected)/)?[A-Za-z0-9_][A-Za-z0-9_.-]*", file):
        raise ValueError(f"index.json: {file[:80]!r} is no file that an index may name: letters, digits, _ . - alone")
    path = directory / file
    if path.is_symlink() or (path.parent.is_symlink() and path.parent != directory):
        raise ValueError(f"{path}: is a link; put the file itself there")
    try:
        return read_bytes(path, MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def check(directory: Path, only: Sequence[str] = (), scheme: str = "", outputs: str = "outputs") -> list[Finding]:
    """A Finding, with its causes, for every output that the cases of DIR's index should have.

    `only` are patterns of case names, `scheme` leaves the cases of that scheme, `outputs` is the folder in DIR to look
    at. Raises ValueError for an index or file that cannot be read, and for patterns that fit no case.
    """
    cases = [
        case for case in read(directory)
        if (not only or any(fnmatchcase(case.name, pattern) for pattern in only))
        and (not scheme or scheme in case.schemes)
    ]  # fmt: skip
    if not cases:
        raise ValueError(f"--only: no case fits {' '.join(only)}{f' in {scheme}' if scheme else ''}")
    received: dict[str, Arrays] = {case.name: {} for case in cases}
    for op in dict.fromkeys(case.op for case in cases):
        if (directory / outputs / f"{op}.safetensors").exists():
            for key, a in arrays(directory, f"{outputs}/{op}.safetensors").items():
                name, _, output = key.rpartition("/")
                if name in received:
                    received[name][output] = a
    if not any(received.values()):
        raise ValueError(
            f"{directory / outputs}: no output of any of the {len(cases)} cases; write OP.safetensors there"
        )
    findings: list[Finding] = []
    for op in dict.fromkeys(case.op for case in cases):
        try:
            judged = [f for case in cases if case.op == op for f in judge(case, received[case.name])]
            findings += explained(judged, received)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:  # not as we wrote it
            raise ValueError(f"{directory / 'index.json'}: a case of {op} is damaged ({one_line(error)})") from None
    return findings


def main(argv: list[str] | None = None) -> int:
    """The command `vectors`: 0 when all is right, 1 when an output is not, 2 for what cannot be read."""
    parser = cli.Parser("vectors", __doc__ or "", operands="{write,check} DIR", examples=(
        "  microumup vectors write vectors\n"
        "  microumup vectors check vectors --only 'linear*' 'readout*' --scheme umup"))  # fmt: skip
    parser.add_argument(
        "action", choices=("write", "check"), metavar="{write,check}", help="make vectors, or check a program's outputs"
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="of index.json")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="check these cases alone, as linear*")
    parser.add_argument("--scheme", choices=SCHEMES, default="", help="check the cases of this scheme alone")
    cli.shared(parser, "quiet", json="passed, and every output with its error")
    args = parser.parse_args(argv)
    say = cli.say(args.quiet)
    with cli.bad_input(parser):
        if args.action == "write":
            cases = write(args.directory)
            following = f"microumup vectors check {args.directory}"
            say(f"{len(cases)} cases in {args.directory}; put outputs beside inputs, then: {following}")
            return 0
        findings = check(args.directory, args.only, args.scheme)
    say(table(findings))
    failed = [f for f in findings if not f.passed]
    if failed:
        print(f"microumup vectors: {len(failed)} of {len(findings)} outputs are wrong or missing", file=sys.stderr)
    if args.json:
        rows = [{"case": f.case.name, "output": f.output, "passed": f.passed, "problem": f.problem,
                 "error": f.error, "causes": f.causes} for f in findings]  # fmt: skip
        print(to_json({"passed": not failed, "outputs": rows}))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
