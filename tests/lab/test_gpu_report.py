"""The report about a GPU: end to end on the double of CuPy, and what becomes of parts that fail, crash or hang."""

import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cupy_double
import pytest
from conftest import Refused

from microumup import gpu, ops
from microumup.lab import gpu_parts, gpu_report
from microumup.lab.gpu_parts import PARTS
from microumup.lab.gpu_report import Outcome, free, main, page, spawn

TINY: dict[str, Any] = {"width": 16, "layers": 1, "head_dim": 8, "seq_len": 8, "batch_size": 2, "steps": 3}
ON_GPU = """
import pytest
@pytest.mark.gpu
def test_one(): assert 1 == {}
def test_other(): assert 0
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The double, and sizes for it; tests for the part that runs tests."""
    cupy_double.install(monkeypatch)
    monkeypatch.setattr(gpu_parts, "DEFAULT", TINY)
    monkeypatch.setattr(gpu_parts, "DEFAULT_LOSS", 4.85)  # after three steps
    monkeypatch.setattr(gpu_parts, "PAPER", TINY | {"corpus": "none", "vocab_size": 300})
    monkeypatch.setattr(gpu_parts, "SCHEMES", ("sp", "umup"))
    monkeypatch.setattr(gpu_parts, "PAPER_STEPS", 3)
    monkeypatch.setattr(gpu_parts, "LOSSES", 3)
    monkeypatch.setattr(gpu_parts, "VALUES", 4000)
    monkeypatch.setattr(gpu_parts, "ROUNDS", 1)
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text("def pytest_configure(config): config.addinivalue_line('markers', 'gpu: x')")
    (tests / "test_it.py").write_text(ON_GPU.format(1))
    monkeypatch.setattr(gpu_parts, "TESTS", tests)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that run here, where the double is."""

    def spawn(name: str, limit: float) -> Outcome:
        found = gpu_parts.run(name)
        json.dumps(found.numbers)
        return Outcome(name, "passed" if found.passed else "failed", 1.0, found.text, found.numbers)

    monkeypatch.setattr(gpu_report, "spawn", spawn)


# ---- All of it ----
@pytest.mark.usefixtures("small", "in_process")
def test_a_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.md"
    assert main(["--out", str(out), "--json"]) == 0
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    found, written = json.loads(last), out.read_text()
    assert (found["page"], found["passed"], list(found["parts"])) == (str(out), True, list(PARTS))
    assert "9 of 9 parts passed" in written
    assert written.strip() in text  # it is printed too
    for name, part in PARTS.items():
        assert f"{name}: {part.what} …\n{name}: passed, 1 s\n" in text  # progress
        assert f"## {name}: {part.what}" in written
    assert "| device | unknown |" in written  # the double says nothing of itself
    assert "1 passed" in written
    assert "Its corpus is not there (--corpus none: unknown" in written
    assert "| paper | plain |" in written
    assert found["parts"]["fp8"]["numbers"]["other_bits"] == 0
    assert found["parts"]["ops"]["numbers"]["pairs"] >= 20
    assert set(found["parts"]["speed"]["numbers"]["steps"]) == {
        f"{c}, {k}" for c in ("default", "paper") for k in ("fast", "plain")
    }


@pytest.mark.usefixtures("small", "in_process")
def test_some_parts_quietly_and_never_over_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.md"
    out.write_text("mine")
    for i in (2, 3):
        assert main(["--parts", "device", "fp8", "device", "--out", str(out), "--quiet", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["page"] == str(tmp_path / f"page-{i}.md")
        assert list(found["parts"]) == ["device", "fp8"]
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.glob("*.md")) == ["page-2.md", "page-3.md", "page.md"]


def test_without_a_gpu_it_says_what_is_missing(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.chdir(tmp_path)
    said = refused(main, [])
    assert "no GPU to report of: CuPy is not installed; pip install" in said
    assert "--device" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--parts", "all"], "--parts: invalid choice: 'all'"),
        (["--limit", "-1"], "--limit: -1 is too small"),
        (["--out", "nowhere/page.md"], "--out: there is no folder nowhere; make it"),
    ],
)
def test_bad_arguments(refused: Refused, argv: list[str], complaint: str) -> None:
    assert complaint in refused(main, argv)


# ---- Each part can fail ----
def wrong_quantize(x: Any, fmt: Any, **_: Any) -> Any:
    return x * 1


def wrong_rms_norm(x: Any, **settings: Any) -> Any:
    y, saved = ops.rms_norm_forward(x, **settings)
    return y * 1.0001, saved


MISTAKES: dict[str, tuple[Any, str, Any, str]] = {
    "tests": (gpu_parts, "TESTS", None, "1 failed"),
    "ops": (gpu, "rms_norm_forward", wrong_rms_norm, "rms_norm | kernels | 1.0e-04"),
    "vectors": (gpu, "rms_norm_forward", wrong_rms_norm, "rms_norm, float32"),
    "losses": (gpu, "adamw", lambda w, g, m, v, **_: (w, m, v), "| umup |"),
    "fp8": (gpu, "quantize", wrong_quantize, "e4m3 | kernels | 4,007 |"),
    "default": (gpu_parts, "DEFAULT_LOSS", 1.0, "On a CPU it ends at 1.00"),
    "paper": (gpu_parts, "train", lambda c, *_, **__: (None, dict.fromkeys(("loss_first", "loss_final", "seconds",
              "tokens_per_second"), 3)), "3 steps on random tokens: loss 3.000"),
}  # fmt: skip


@pytest.mark.usefixtures("small", "in_process")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_part_fails_and_the_next_one_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, attribute, value, said = MISTAKES[name]
    if name == "tests":
        (gpu_parts.TESTS / "test_it.py").write_text(ON_GPU.format(2))
    else:
        monkeypatch.setattr(module, attribute, value)
    assert main(["--parts", name, "device", "--out", str(tmp_path / "page.md"), "--quiet"]) == 1
    written = (tmp_path / "page.md").read_text()
    assert "1 of 2 parts passed" in written
    assert f"## {name}: {PARTS[name].what}\n\n**failed**\n\n" in written
    assert said in written


@pytest.mark.usefixtures("small")
def test_tests_that_are_all_skipped_are_no_pass_and_none_are_none() -> None:
    (gpu_parts.TESTS / "test_it.py").write_text(
        "import pytest\n@pytest.mark.gpu\n@pytest.mark.skip\ndef test(): pass\n"
    )
    assert not gpu_parts.tests().passed
    (gpu_parts.TESTS / "conftest.py").unlink()
    found = gpu_parts.tests()
    assert found.passed
    assert found.text.startswith("Not run: this is no checkout")


# ---- Processes ----
@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`runs(code)`: a part is this Python program."""
    return lambda code: monkeypatch.setattr(gpu_report, "command", lambda name: [sys.executable, "-c", code])


def test_a_part_of_its_own_process(runs: Callable[[str], None]) -> None:
    runs('print(\'by the way\'); print(\'{"passed": true, "text": "fine", "numbers": {"a": 1}}\')')
    outcome = spawn("device", 60)
    assert outcome._replace(seconds=0) == ("device", "passed", 0, "fine", {"a": 1})


def test_a_crash_is_its_last_lines(runs: Callable[[str], None]) -> None:
    runs(f"import sys; sys.exit('\\n'.join(['first'] + ['no'] * 20 + ['{Path.home()}/x: boom']))")
    outcome = spawn("device", 60)
    assert (outcome.verdict, outcome.numbers) == ("crashed", {})
    assert "Ended with 1." in outcome.text
    assert "~/x: boom" in outcome.text  # without the name of whoever ran it
    assert "first" not in outcome.text
    runs("import os; os.kill(os.getpid(), 11)")
    assert "Ended with -11.\n\n````\nIt said nothing.\n````" in spawn("device", 60).text


def test_a_part_that_hangs_is_ended_with_all_that_it_started(runs: Callable[[str], None], tmp_path: Path) -> None:
    started = tmp_path / "started"
    runs("import faulthandler, signal, subprocess; faulthandler.register(signal.SIGUSR1); "
         "p = subprocess.Popen(['sleep', '60']); print('at work', flush=True); "
         f"open({str(started)!r}, 'w').write(str(p.pid)); p.wait()")  # fmt: skip
    outcome = spawn("device", 1.5)
    assert outcome.verdict == "took too long"
    assert "at work" in outcome.text
    assert 'File "<string>", line 1 in <module>' in outcome.text  # where it was
    assert outcome.seconds < 30
    other = int(started.read_text())
    for _ in range(100):  # it is gone once init has seen to it
        if not Path(f"/proc/{other}").exists() or " Z " in Path(f"/proc/{other}/stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail("what the part had started is still there")


@pytest.mark.usefixtures("small")
def test_a_part_as_the_command_runs_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run-part", "fp8"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert faulthandler.unregister(signal.SIGUSR1)


def test_a_report_by_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path(__file__).parent.parent
    double = f"import sys\nsys.path.append({str(here)!r})\nimport cupy_double\nsys.modules['cupy'] = cupy_double.cupy\n"
    (tmp_path / "cupy.py").write_text(double)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, here.parent))))
    cupy_double.install(monkeypatch)
    assert main(["--parts", "device", "ops", "--out", str(tmp_path / "page.md"), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["parts"]
    assert found["device"]["numbers"]["CuPy"] == "unknown"
    assert found["ops"]["numbers"]["pairs"] >= 20


# ---- The page ----
def test_a_page_of_half_a_report() -> None:
    done = [Outcome("device", "passed", 1.2, "text", {"device": "NVIDIA X"}), Outcome("ops", "crashed", 3, "why", {})]
    lines = page(done, ["device", "ops", "fp8"]).splitlines()
    assert lines[0].endswith("on NVIDIA X")
    assert "1 of 3 parts passed" in lines[2]
    assert lines[4:9] == [
        "| part |  | result | time |", "|---|---|---|---|",
        f"| device | {PARTS['device'].what} | passed | 1 s |", f"| ops | {PARTS['ops'].what} | crashed | 3 s |",
        f"| fp8 | {PARTS['fp8'].what} | not run |  |",
    ]  # fmt: skip
    assert lines[-5:] == [f"## ops: {PARTS['ops'].what}", "", "**crashed**", "", "why"]


def test_a_name_that_is_free(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    assert free(path) == path
    path.symlink_to("nowhere")  # a link that leads nowhere is somebody's, too
    assert free(path) == tmp_path / "a-2.md"


@pytest.mark.usefixtures("small")
def test_peaks_of_a_device_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {"name": b"NVIDIA GeForce RTX 4090"}
    monkeypatch.setattr(cupy_double.cupy.cuda.runtime, "getDeviceProperties", lambda i: properties, raising=False)
    found = gpu_parts.speed()
    assert "Peaks: NVIDIA RTX 4090, 24 GB, NVIDIA's Ada" in found.text
    assert all(step["estimate_ms"] > 0 for step in found.numbers["steps"].values())
    properties["name"] = b"Another"
    assert "Peaks: none known of Another" in gpu_parts.speed().text
