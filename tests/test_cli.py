"""Options of all commands: shared ones declared once, and a help that begins with the usual ones."""

import ast
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from conftest import Refused

from microumup import cli
from microumup.__main__ import COMMANDS
from microumup.config import TrainConfig
from microumup.limits import option_name
from microumup.train import main

PACKAGE = Path(cli.__file__).parent
USUAL = {
    "--scheme", "--width", "--layers", "--text", "--steps", "--batch-size", "--lr", "--fp8", "--seed",
    "--preset", "--out", "--resume", "--device", "--quiet", "--json",
}  # fmt: skip
WITH_RARE = ("train", "explain", "scales", "coordcheck", "sweep")


def help_of(name: str, capsys: pytest.CaptureFixture[str], option: str = "--help") -> str:
    with pytest.raises(SystemExit) as end:
        import_module(COMMANDS[name][0]).main([option])
    assert end.value.code == 0
    return capsys.readouterr().out


def explained(text: str) -> set[str]:
    """The options that have words of their own."""
    lines = re.findall(r"^  (?:-h, )?(--.*)", text, re.MULTILINE)
    return {option for line in lines for option in re.findall(r"--[a-z][\w-]*", line.partition("  ")[0])}


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_help_of_train_has_the_usual_options_and_names_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("train", capsys)
    assert explained(text) == {*USUAL, "--help", "--help-all"}
    assert len(text.splitlines()) <= 50  # what a terminal shows at once, or nearly
    last = text.rpartition("\n\n")[2]
    assert re.match(r"\d+ more, explained by --help-all: --", last)
    named = last.partition(":")[2].replace(",", "").split()
    assert int(last.split()[0]) == len(named)
    command = {"--from-sweep", "--save-every", "--save-minutes", "--log-scales", "--log-every", "--eval-every"}
    all_options = {option_name(field.name) for field in fields(TrainConfig)} | command
    assert set(named) == all_options - set(USUAL)


@pytest.mark.parametrize("name", WITH_RARE)
def test_help_all_explains_every_option_that_help_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    short, long = help_of(name, capsys), help_of(name, capsys, "--help-all")
    rest = set(re.findall(r"--[a-z][\w-]*", short.rpartition("--help-all: ")[2]))
    assert rest
    assert not explained(short) & rest
    aliases = {"--alpha-residual", "--alpha-residual-attn-ratio", "--alpha-attn", "--alpha-output"}
    assert explained(long) - aliases - {"--no-embedding-lr-rule", "--no-tf32"} == explained(short) | rest
    assert "more, explained by" not in long


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITH_RARE])
def test_a_command_that_explains_all_its_options_has_no_help_all(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help-all" not in help_of(name, capsys)


def test_an_option_that_help_leaves_out_is_taken_all_the_same(refused: Refused) -> None:
    assert "--norm-eps: -1.0 is not a positive" in refused(main, ["--norm-eps", "-1"])


def test_tied_embeddings_are_no_option(refused: Refused) -> None:
    assert "unrecognized arguments: --tied-embeddings" in refused(main, ["--tied-embeddings"])


@pytest.mark.parametrize(
    ("name", "argv", "mend"),
    [
        ("train", "--widht 64", "--widht 64; did you mean --width?"),
        ("train", "--batch=32", "--batch=32; did you mean --batch-size?"),
        ("train", "-steps 10", "-steps 10; did you mean --steps?"),
        ("train", "--seq_len 32", "--seq_len 32; did you mean --seq-len?"),
        ("train", "--learning-rate 1", "--learning-rate 1; did you mean --lr?"),
        ("train", "--epochs 3", "--epochs 3; did you mean --steps?"),
        ("train", "--gpu", "--gpu; did you mean --device?"),
        ("train", "--vocab 300", "--vocab 300; did you mean --vocab-size?"),
        ("train", "--verbose", "--verbose; see microumup train --help"),  # --rope-base looks a little like it
        ("train", "-", "-; see microumup train --help"),
        ("train", "-- x", "x; see microumup train --help"),
        ("curve", "runs --epochs 3", "--epochs 3; see microumup curve --help"),
        ("train", "10", "10; see microumup train --help"),
        ("train", "--quiet 10", "10; see microumup train --help"),
        ("sweep", "--out runs --grid lr 1,2", "1,2; --grid takes one word, OPTION=VALUES"),
        ("coordcheck", "--widths 64 128", "128; --widths takes one word, N,N,…"),
        ("generate", "", "are required: RUN_DIR; see microumup generate --help"),
        ("vectors", "", "are required: {write,check}, DIR; see microumup vectors --help"),
    ],
)
def test_a_slip_of_the_keyboard_is_told_its_mend(name: str, argv: str, mend: str, refused: Refused) -> None:
    assert refused(import_module(COMMANDS[name][0]).main, argv.split()).endswith(f"{mend}\n")


def test_what_other_programs_call_an_option_is_none_of_ours() -> None:
    assert not {*cli.ELSEWHERE} & {option_name(field.name) for field in fields(TrainConfig)}
    assert {*cli.ELSEWHERE.values()} <= USUAL | {"--seq-len"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_and_breaks_no_word(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(name, capsys)
    assert f"  microumup {name}" in text.partition("\nexamples:\n")[2]
    assert not re.search(r"\w-$", text, re.MULTILINE)


def test_a_shared_option_is_declared_in_one_place() -> None:
    elsewhere = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                names = {arg.value.lstrip("-") for arg in node.args if isinstance(arg, ast.Constant)}
                elsewhere += [f"{path.relative_to(PACKAGE)}:{node.lineno} {name}" for name in names & {*cli.SHARED}]
    assert elsewhere == []


def test_the_help_has_the_default_that_the_command_has_set() -> None:
    parser = cli.Parser("name", "")
    cli.shared(parser, "device", seeds="of each point")
    parser.set_defaults(device="cpu", seeds=1)
    assert "auto, cpu or gpu (default: cpu)" in parser.format_help()
    assert "of each point (default: 1)" in parser.format_help()
    assert vars(parser.parse_args([])) == {"device": "cpu", "seeds": 1}


@pytest.mark.parametrize("name", ["sweep", "coordcheck", "fp8-gap"])
def test_more_seeds_or_workers_than_can_be_are_refused(name: str, refused: Refused) -> None:
    command = import_module(COMMANDS[name][0]).main
    for option in ("--seeds", "--workers"):
        assert f"{option}: 4,294,967,296 are too many; at most 10,000" in refused(command, [option, str(2**32)])


@pytest.mark.parametrize("text", ["-8^0.5", "2^99999", "0^-1", "1+2j", "", "x"])
def test_what_is_no_number_is_said_to_be_none(text: str, refused: Refused) -> None:
    """A negative number to a broken power is complex, and went on as such."""
    assert f"--lr: {text!r} is not a number" in refused(main, [f"--lr={text}"])


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_a_text_from_a_directory_that_is_gone_is_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    error = refused(import_module(COMMANDS[name][0]).main, ["--text", "a.txt"])
    assert "--text: a.txt: No such file or directory; give its whole path" in error


def test_a_path_beyond_a_link_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`link/..` is beside what the link leads to; it became the directory with the link in it, and another text."""
    (tmp_path / "there" / "deeper").mkdir(parents=True)
    (tmp_path / "there" / "a.txt").write_text("that")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.txt").write_text("another")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there" / "deeper")
    monkeypatch.chdir(tmp_path / "here")
    found = Path(cli.absolute("link/../a.txt"))
    assert found.is_absolute()
    assert found.read_text() == "that"


@pytest.mark.parametrize("name", ["train", "generate", "sweep", "coordcheck"])
def test_two_dashes_are_no_value(name: str, refused: Refused) -> None:
    """argparse made an empty list of them, which ended in a traceback."""
    assert "--seed: -- is no value" in refused(import_module(COMMANDS[name][0]).main, ["--seed=--"])


def test_what_is_refused_is_refused_in_one_line_even_if_it_has_two(refused: Refused) -> None:
    from microumup.lab import curve

    assert "--plot: a b does not end with .png" in refused(curve.main, ["runs", "--plot", "a\nb"])
