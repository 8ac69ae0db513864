"""The golden vectors: what is committed is what is written, outputs are judged, and what is no such file is refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Refused
from safetensors.numpy import load_file, save_file

from microumup import fused
from microumup.engine import using
from microumup.files import to_json
from microumup.interop import cases, judge, vectors
from microumup.interop.cases import all_cases, expected, model
from microumup.interop.judge import TOLERANCES, differences, tolerance_of
from microumup.interop.vectors import check, main, read, write
from microumup.optim import DECAYS
from microumup.parametrization import SCHEMES

COMMITTED = Path(__file__).parents[2] / "data" / "vectors"
KIND = ("inputs", "expected")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vectors")
    write(directory)
    return directory


@pytest.fixture
def answered(made: Path, tmp_path: Path) -> Path:
    """A copy with every output right, to be spoilt."""
    directory = tmp_path / "vectors"
    shutil.copytree(made, directory)
    shutil.copytree(made / "expected", directory / "outputs")
    return directory


def spoil(directory: Path, op: str, key: str, value) -> None:
    """Put another array, or none, in place of an output."""
    path = directory / "outputs" / f"{op}.safetensors"
    found = load_file(path)
    if value is None:
        del found[key]
    else:
        found[key] = value(found[key]) if callable(value) else value
    save_file(found, path)


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def test_it_is_written_alike_every_time(made: Path, tmp_path: Path) -> None:
    write(tmp_path)
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for path in files:
        assert (tmp_path / path).read_bytes() == (made / path).read_bytes(), path


def test_the_committed_copy_is_what_is_written(made: Path) -> None:
    """Inputs to the bit. Settings and outputs as far as a machine may differ from another in the last digit of exp, of
    pow and of a sum: to a thousandth of what a candidate is allowed. A rule that changes is off by far more, and asks
    for `vectors write data/vectors` and another VERSION."""
    for name in (made / "inputs").iterdir():
        assert name.read_bytes() == (COMMITTED / "inputs" / name.name).read_bytes(), name.name
    index, committed = (json.loads((d / "index.json").read_text()) for d in (made, COMMITTED))
    plans, committed_plans = (json.loads((d / "plans.json").read_text()) for d in (made, COMMITTED))
    assert_alike(index, committed)
    assert_alike(plans, committed_plans)
    by_name = {case.name: case for case in all_cases()}
    for path in (made / "expected").iterdir():
        found, before = load_file(path), load_file(COMMITTED / "expected" / path.name)
        assert list(found) == list(before)
        for key, array in found.items():
            case, output = by_name[key.rpartition("/")[0]], key.rpartition("/")[2]
            tolerance = TOLERANCES[tolerance_of(case, output)]
            if "float32" in tolerance_of(case, output):  # one step of rounding is 4e-3 of this tolerance
                tolerance = tolerance._replace(most=2**-23, of="element")
                assert np.allclose(array, before[key], rtol=2**-22, atol=1e-9), key
            else:
                # in FP8 a sum that another processor rounds otherwise may move a value to its neighbour
                part = 1 if case.op == "model_fp8" else 1000
                tolerance = tolerance._replace(most=tolerance.most / part)
                assert (differences(array, before[key], tolerance) <= 1).all(), key


def assert_alike(a, b, where="index") -> None:
    """Equal JSON, numbers to 1e-14."""
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_alike(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_alike(*pair, f"{where}[{i}]")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-14), where
    else:
        assert a == b, where


def test_the_copy_is_small_and_has_nothing_that_is_not_written(made: Path) -> None:
    files = {path.relative_to(COMMITTED) for path in COMMITTED.rglob("*") if path.is_file()}
    assert files == {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    assert sum((COMMITTED / path).stat().st_size for path in files) <= 3 << 20


def test_every_op_scheme_dtype_and_factor_is_there() -> None:
    found = list(all_cases())
    assert len({case.name for case in found}) == len(found)
    from microumup import ops

    pairs = {name.removesuffix("_forward") for name in vars(ops) if name.endswith("_forward")}
    assert pairs <= {case.op for case in found}
    for op in pairs:
        assert {case.dtype for case in found if case.op == op} == {"float64", "float32"}
    assert {case.schemes[0] for case in found if case.op == "plan"} == set(SCHEMES)
    alphas = {
        case.op: {c.settings["alpha"] for c in found if c.op == case.op} for case in found if "alpha" in case.settings
    }
    assert all(len(alphas[op]) >= 3 for op in ("attention", "gated_silu", "cross_entropy"))
    assert {case.settings["config"]["fp8"] for case in found if case.op.startswith("model")} == {"none", "fp8"}


def test_every_size_of_a_case_is_another_number() -> None:
    """A factor made of the wrong size has then another value."""
    for case in all_cases():
        sizes = [case.settings[k] for k in ("fan_in", "fan_out", "batch_tokens", "vocab_size") if k in case.settings]
        if case.op in ("linear", "readout", "linear_fp8", "embedding"):
            assert len(set(sizes)) == len(sizes), case.name


def test_a_plan_in_the_file_is_the_plan(made: Path) -> None:
    plans = json.loads((made / "plans.json").read_text())
    for case in all_cases():
        if case.op == "plan":
            config = cases.ModelConfig(**case.settings["config"])
            assert plans[case.name] == json.loads(to_json(cases.plan(config, case.settings["batch_tokens"])))


def test_the_fp8_inputs_hold_what_is_difficult() -> None:
    for case in all_cases():
        if case.op == "fp8_round":
            x, found = case.inputs["x"], expected(case)
            most, least = case.settings["max"], case.settings["min_subnormal"]
            assert np.isnan(x).any()
            assert np.isinf(x).sum() == 2
            assert {(0.0, False), (0.0, True)} <= {(float(a), bool(np.signbit(a))) for a in x[x == 0]}
            assert ((np.abs(x) > 0) & (np.abs(x) < least / 2)).any()
            assert ((np.abs(x) > most) & np.isfinite(x)).any()
            moved = np.abs(x - found["saturating"])[np.isfinite(x)]
            assert (moved > 0).sum() > 300  # ties, and the float32 on either side of each
            assert not np.array_equal(found["saturating"], found["nonsaturating"])


def test_the_decay_of_the_model_shows() -> None:
    """λ = 2^-5 takes 1 - (1 - λ)^20 = 47 % of a weight in 20 updates: a wrong reading of it cannot hide."""
    case = next(c for c in all_cases() if c.name == "model.umup.float64")
    right = expected(case)
    for decay in (0.0, case.settings["weight_decay"] * case.settings["eta"]):
        wrong = model(case.inputs, case.settings | {"weight_decay": decay})
        off = np.linalg.norm(wrong["trained.head"] - right["trained.head"]) / np.linalg.norm(right["trained.head"])
        assert off > 0.05
    assert DECAYS["independent"](case.settings["weight_decay"], 1.0, 0.5, 0.1) == case.settings["weight_decay"]


# ---------------------------------------------------------------------------------------------------------------------
# Tolerances: what is right is far within them, what is wrong far outside


@pytest.mark.parametrize("kernels", [{}, fused.KERNELS], ids=["plain", "fused"])
@pytest.mark.parametrize("name", [case.name for case in all_cases() if case.op.startswith("model")])
def test_another_order_of_summation_is_tolerated_in_a_model(name: str, kernels) -> None:
    """The batch upside down, in the dtype of the case, plain and fused: at most a tenth of the tolerance is used; in
    FP8, where a value may move to its neighbour, no more than all."""
    case = next(case for case in all_cases() if case.name == name)
    inputs = case.inputs | {k: case.inputs[k][:, ::-1].copy() for k in ("tokens", "targets")}
    with using(kernels):
        found = model(inputs, case.settings)
    found["logits"] = found["logits"][::-1]
    assert max(f.error for f in judge.judge(case, found)) < (1 if case.op == "model_fp8" else 0.1)


def test_a_thousandth_off_is_not_tolerated_anywhere() -> None:
    for case in all_cases():
        if case.op == "model_fp8" or case.op.startswith("fp8"):
            continue
        spoilt = {name: (a * 1.001).astype(a.dtype) for name, a in expected(case).items()}
        assert not any(f.passed for f in judge.judge(case, spoilt) if np.abs(spoilt[f.output]).max() > 0), case.name


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def test_right_outputs_pass(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(answered), "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert result["passed"]
    assert len(result["outputs"]) == len(check(answered)) == sum(len(expected(case)) for case in all_cases())
    assert f"{len(result['outputs'])} of {len(result['outputs'])} outputs are right" in out[-2]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("linear.2x3x5x7.float64/dw", lambda a: a.T.copy(), "dw: shape (5, 7), expected (7, 5)"),
        ("linear.2x3x5x7.float64/dw", None, "dw: missing; expected float64 (7, 5)"),
        ("linear.2x3x5x7.float64/y", lambda a: a.astype(np.float32), "y: dtype float32, expected float64"),
        ("linear.2x3x5x7.float64/y", lambda a: a * np.nan, "y: NaN at [0, 0, 0]; 42 of 42 elements are no numbers"),
        (
            "linear.2x3x5x7.float32/y",
            lambda a: a + np.inf,
            "y: infinite at [0, 0, 0]; 42 of 42 elements are no numbers",
        ),
        ("linear.2x3x5x7.float64/y", lambda a: a * 2, "times what is tolerated"),
    ],
)
def test_an_output_that_is_not_right_is_a_line(answered: Path, capsys, key: str, value, line: str) -> None:
    spoil(answered, "linear", key, value)
    assert main(["check", str(answered), "--only", "linear.*"]) == 1
    out, error = capsys.readouterr()
    lines = [text for text in out.splitlines() if text.startswith("    linear.")]
    assert len(lines) == 1
    assert key.replace("/", " ") in lines[0]
    assert line in lines[0]
    assert error == "microumup vectors: 1 of 18 outputs are wrong or missing\n"


def test_what_nobody_wrote_yet_has_no_cause_and_no_long_list(answered: Path, capsys) -> None:
    """Who ports one op reads of the 700 outputs of the others in a few lines."""
    (answered / "outputs" / "attention.safetensors").unlink()
    assert main(["check", str(answered)]) == 1
    text = capsys.readouterr().out
    part = text[text.index("attention  ") :].splitlines()[1:]
    there = [line for line in part if line.startswith("    attention.")]
    assert len(there) == 3
    assert all("missing; expected" in line for line in there)
    assert part[3].endswith(" more are missing")
    assert "likely cause" not in text


def test_a_failure_names_argument_index_expected_received_and_cause(answered: Path, capsys) -> None:
    for dtype in ("float64", "float32"):
        for shape in ("2x3x5x7", "3x5x8x3", "10x12x17"):
            fan_in = {"2x3x5x7": 5, "3x5x8x3": 8, "10x12x17": 12}[shape]
            key = f"readout.{shape}.umup.{dtype}/dx"
            spoil(answered, "readout", key, lambda a, n=fan_in: (a / n**0.5).astype(a.dtype))
    assert main(["check", str(answered), "--only", "readout*", "--scheme", "umup"]) == 1
    out = capsys.readouterr().out
    assert "likely cause: dx: the factor is 1/fan_in, not fan_in^-1/2 (6 of 6 failures)" in out
    assert "readout.2x3x5x7.umup.float64 dx[" in out


def test_plans_and_trainings_are_explained(answered: Path, capsys) -> None:
    for width in (16, 96, 256):
        key = f"plan.umup.w{width}"
        case = next(c for c in all_cases() if c.name == key)
        hidden = np.array([".q" in n or "layer" in n for n in case.settings["weights"]])
        depth = {16: 4, 96: 6, 256: 12}[width]
        spoil(answered, "plan", f"{key}/C", lambda a, h=hidden, d=depth: np.where(h, a * d**0.5, a))
    assert main(["check", str(answered), "--only", "plan.umup.*"]) == 1
    assert "likely cause: no L^-1/2 in the LR of branches; it is L^-1/2: Table 1 (3 of 3" in capsys.readouterr().out
    case = next(c for c in all_cases() if c.name == "model.umup.float64")
    wrong = model(case.inputs, case.settings | {"weight_decay": case.settings["weight_decay"] * case.settings["eta"]})
    for name, array in wrong.items():
        spoil(answered, "model", f"model.umup.float64/{name}", array)
    assert main(["check", str(answered), "--only", "model.umup.float64"]) == 1
    assert "likely cause: the weight decay is multiplied by η" in capsys.readouterr().out


def test_a_number_of_a_plan_that_is_off_gets_its_factor(answered: Path, capsys) -> None:
    """The C of q, k and v in layer 1 as 1/fan_in: no mistake of the zoo, but a factor that has a name."""
    names = next(c for c in all_cases() if c.name == "plan.umup.w96").settings["weights"]
    off = np.array([name in ("layer1.q", "layer1.k", "layer1.v") for name in names])
    spoil(answered, "plan", "plan.umup.w96/C", lambda a: np.where(off, a * 96**-0.5, a))
    assert main(["check", str(answered), "--only", "plan.umup.w96"]) == 1
    assert "likely cause: C: a factor √fan_in is missing (1 of 1 failures)" in capsys.readouterr().out


def test_a_part_can_be_checked(answered: Path) -> None:
    for path in (answered / "outputs").iterdir():
        if path.name != "rope.safetensors":
            path.unlink()
    assert main(["check", str(answered), "--only", "rope.*"]) == 0
    assert main(["check", str(answered)]) == 1


def test_nothing_fits_or_nothing_is_there(answered: Path, refused: Refused) -> None:
    assert "no case fits x* in umup" in refused(main, ["check", str(answered), "--only", "x*", "--scheme", "umup"])
    shutil.rmtree(answered / "outputs")
    assert "no output of any of the" in refused(main, ["check", str(answered)])
    assert "index.json: cannot be read (No such file" in refused(main, ["check", str(answered / "elsewhere")])


def test_writing_where_it_cannot_is_a_line(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused(main, ["write", str(tmp_path / "file")])


# ---------------------------------------------------------------------------------------------------------------------
# An index that means harm


def edit(directory: Path, change) -> None:
    index = json.loads((directory / "index.json").read_text())
    (directory / "index.json").write_text(json.dumps(change(index) or index))


def first(**values):
    """A change of the first case."""
    return lambda index: index["cases"][0].update(values)


HARMFUL = {
    "absolute": (first(file="/etc/passwd"), "is no file that an index may name"),
    "up": (first(file="../../secret.safetensors"), "is no file that an index may name"),
    "up within": (first(file="x/../../secret"), "is no file that an index may name"),
    "dots": (first(file=".."), "is no file that an index may name"),
    "backslash": (first(file="..\\secret"), "is no file that an index may name"),
    "null": (first(file="a\0b"), "is no file that an index may name"),
    "no text": (first(file=["linear.safetensors"]), "is damaged"),
    "unknown op": (first(op="os.system"), "has the unknown op 'os.system'"),
    "missing file": (first(file="other.safetensors"), "other.safetensors: cannot be read (No such file"),
    "missing input": (first(inputs=["x", "w", "secret"]), "linear.2x3x5x7.float64/secret is missing"),
    "huge number": (first(settings={"fan_in": 10**12}), "has a setting 1000000000000 that no case of ours has"),
    "deep": (first(settings={"a": {"b": {"c": {"d": {"e": 1}}}}}), "has a setting"),
    "no settings": (first(settings=[]), "is damaged"),
    "version": (lambda index: index.update(version=99), "version 99, this program reads 1"),
    "format": (lambda index: index.update(format="other"), "not an index of microumup vectors"),
    "no cases": (lambda index: index.update(cases={}), "cases is no list"),
    "case is text": (lambda index: index["cases"].insert(0, "linear"), "case 'linear' is damaged"),
    "escape": (first(name="\x1b[31mlinear"), "a name is not of letters, digits, _ . -"),
    "line": (first(inputs=["x\n"]), "a name is not of letters, digits, _ . -"),
    "twice": (lambda index: index["cases"].append(index["cases"][0]), "two cases have one name"),
    "list": (lambda index: [], "not an index"),
}


@pytest.mark.parametrize("how", HARMFUL)
def test_a_harmful_index_is_refused_in_a_line(answered: Path, refused: Refused, how: str) -> None:
    change, message = HARMFUL[how]
    index = json.loads((answered / "index.json").read_text())
    changed = change(index)
    (answered / "index.json").write_text(json.dumps(index if changed is None else changed))
    assert message in refused(main, ["check", str(answered)])


@pytest.mark.parametrize("config", [{"layers": 60_000}, {"width": 65_536}, {"vocab_size": 65_536 * 1024}, {"path": 1}])
def test_a_harmful_model_is_refused(answered: Path, refused: Refused, config: dict) -> None:
    def change(index):
        case = next(case for case in index["cases"] if case["op"] == "model")
        case["settings"]["config"].update(config)

    edit(answered, change)
    refused(main, ["check", str(answered)])


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\x00", "nothing"])
def test_an_index_that_is_no_json_is_refused(answered: Path, refused: Refused, content: str) -> None:
    (answered / "index.json").write_text(content)
    assert "index.json: not JSON" in refused(main, ["check", str(answered)])


@pytest.mark.parametrize("name", ["index.json", "inputs/linear.safetensors", "outputs/linear.safetensors", "inputs"])
def test_a_link_is_not_followed(answered: Path, tmp_path: Path, refused: Refused, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(answered / name, elsewhere)
    (answered / name).symlink_to(elsewhere)
    assert "is a link; put the file itself there" in refused(main, ["check", str(answered)])


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}" + b"x" * 9, b"pickle\x80\x04"])
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_what_is_no_safetensors_file_is_refused(answered: Path, refused: Refused, kind: str, content: bytes) -> None:
    (answered / kind / "linear.safetensors").write_bytes(content)
    assert "linear.safetensors: not a safetensors file" in refused(main, ["check", str(answered)])


def test_a_file_that_is_too_large_is_not_read(answered: Path, refused: Refused, monkeypatch) -> None:
    monkeypatch.setattr(vectors, "MOST_BYTES", 1000)
    assert "bytes are too many" in refused(main, ["check", str(answered)])


def test_what_is_no_plain_file_is_not_read(answered: Path, refused: Refused) -> None:
    (answered / "outputs" / "linear.safetensors").unlink()
    os.mkfifo(answered / "outputs" / "linear.safetensors")
    assert "cannot be read (it is no regular file)" in refused(main, ["check", str(answered)])


def test_dtypes_that_numpy_lacks_are_refused(answered: Path, refused: Refused) -> None:
    header = json.dumps(
        {"linear.2x3x5x7.float64/y": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    ).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0\0"
    (answered / "outputs" / "linear.safetensors").write_bytes(content)
    assert main_or_refused(answered, refused)


def main_or_refused(directory: Path, refused: Refused) -> str:
    return refused(main, ["check", str(directory), "--only", "linear.*"])


def test_an_index_reads_back_as_the_cases(made: Path) -> None:
    found, before = read(made), list(all_cases())
    assert [case.name for case in found] == [case.name for case in before]
    for a, b in zip(found, before, strict=True):
        assert (a.op, a.dtype, a.schemes) == (b.op, b.dtype, b.schemes)
        assert a.settings == json.loads(json.dumps(b.settings))
        assert list(a.inputs) == list(b.inputs)
        assert all(np.array_equal(a.inputs[name], b.inputs[name], equal_nan=True) for name in a.inputs)
