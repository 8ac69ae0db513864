"""Parts of the report about a GPU: what each one looks at, and says in Markdown. All of them need a device.

Each part is a function without arguments that returns what it Found. It may raise whatever it likes, or never return:
`gpu_report.py` runs it in a process of its own.
"""

import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from microumup import __version__, gpu, ops
from microumup.backend import Array, to_device, to_host, xp_of
from microumup.config import PRESETS, TrainConfig
from microumup.corpora import BYTES, ByteTokenizer
from microumup.data import Corpus, load_corpus
from microumup.fp8 import FORMATS, quantize
from microumup.interop import reference
from microumup.interop.cases import PAIRS
from microumup.lab.gradcheck import cases
from microumup.lab.roofline import GPUS, LAUNCH, Gpu, estimate
from microumup.parametrization import SCHEMES
from microumup.trainer import Trainer, train

TESTS = Path(__file__).resolve().parent.parent.parent / "tests"  # in a checkout
DEFAULT: dict[str, Any] = {}  # options of the default run
PAPER = PRESETS["paper"]
PAPER_STEPS = 50
LOSSES = 20
DEFAULT_LOSS = 1.42  # of the default run on a CPU, in nats
VALUES = 10**6
NOISE = 1e-5  # of float32: 6e-8 for each number, more for sums, and exp and tanh of another library
NOISE_OF_A_RUN = 1e-3  # of 20 losses: a step's rounding, some 1e-6, is made larger by those that follow
NOISE_OF_A_LOSS = 0.05  # nats, of a whole run: what another seed changes


class Found(NamedTuple):
    """What a part says: whether all holds, in Markdown, and its numbers for --json."""

    passed: bool
    text: str
    numbers: dict[str, Any]


def table(*rows: tuple[object, ...]) -> str:
    """A table of Markdown, the first row its head."""
    head, *body = ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def _xp() -> Any:
    return xp_of(to_device(np.zeros(1), "gpu"))


# ---- The device ----
def device() -> Found:
    """Versions, and what the device says of itself. What cannot be had is unknown, and no failure."""
    xp = _xp()

    def properties() -> dict[str, Any]:
        found: dict[str, Any] = xp.cuda.runtime.getDeviceProperties(0)
        return found

    def driver() -> str:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()[0]

    asked: dict[str, Callable[[], object]] = {
        "device": lambda: properties()["name"].decode(),
        "memory": lambda: f"{properties()['totalGlobalMem'] / 1e9:.1f} GB",
        "compute capability": lambda: f"{properties()['major']}.{properties()['minor']}",
        "driver": driver,
        "CUDA of the driver": lambda: _cuda_version(xp.cuda.runtime.driverGetVersion()),
        "CUDA of CuPy": lambda: _cuda_version(xp.cuda.runtime.runtimeGetVersion()),
        "CuPy": lambda: xp.__version__,
        "microumup": lambda: __version__,
        "NumPy": lambda: np.__version__,
        "Python": platform.python_version,
        "system": platform.platform,
    }
    facts = {}
    for name, ask in asked.items():
        try:
            facts[name] = str(ask())
        except Exception:  # whatever a library, or a driver, has against it
            facts[name] = "unknown"
    return Found(True, table(("", ""), *facts.items()), facts)


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


# ---- Does it compute what it should? ----
def tests() -> Found:
    """All tests marked gpu, where the repository's tests are there."""
    if not (TESTS / "conftest.py").exists() or not find_spec("pytest"):
        return Found(
            True, "Not run: this is no checkout, or pytest is not installed. The parts below do not need it.", {}
        )
    # without the options of pyproject.toml, one of which would leave out the last line
    options = ["-o", "addopts=", "-q", "-m", "gpu", "-rfEs", "-p", "no:cacheprovider", "--tb=short", "--color=no"]
    argv = [sys.executable, "-m", "pytest", *options, str(TESTS)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=TESTS.parent)
    lines = done.stdout.rstrip().splitlines() or done.stderr.rstrip().splitlines() or ["no output"]
    ran = done.returncode == 0 and " passed" in lines[-1]
    return Found(ran, lines[-1] if ran else fenced(lines[-40:]), {"summary": lines[-1]})


def fenced(lines: list[str]) -> str:
    """Lines as a block of code, whatever is in them."""
    return "\n".join(["````", *(line.replace("````", "` ` ` `") for line in lines), "````"])


def ops_() -> Found:
    """Every pair of ops.py on the device, and the kernels', against the same on NumPy in float64."""
    rows, worst = [("pair", "which", "largest error of y and gradients")], 0.0
    for case in cases():
        if case.forward.__module__ != ops.__name__:
            continue
        name = case.forward.__name__.removesuffix("_forward")
        settings = case.settings | ({"scale": case.scale} if case.scale else {})
        arrays = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in case.arrays]
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
        expected = _outputs((case.forward, case.backward), wide, settings, "cpu")
        for which, pair in {"ops": (case.forward, case.backward), "kernels": _kernels(name)}.items():
            if pair:
                found = _outputs(pair, arrays, settings, "gpu")
                error = max(_off(a, b) for a, b in zip(found, expected, strict=True))
                rows.append((name, which, f"{error:.1e}"))
                worst = max(worst, error if np.isfinite(error) else np.inf)
    text = f"Allowed: {NOISE:.0e}, relative to the norm.\n\n{table(*rows)}"
    return Found(worst <= NOISE, text, {"pairs": len(rows) - 1, "worst": worst})


def _kernels(name: str) -> tuple[Any, Any] | None:
    forward = getattr(gpu, f"{name}_forward", None)
    return (forward, getattr(gpu, f"{name}_backward")) if forward else None


def _outputs(pair: tuple[Any, Any], arrays: list[Array], settings: dict[str, Any], where: str) -> list[Array]:
    """y and all gradients, for a cotangent of random numbers."""
    y, saved = pair[0](*(to_device(a, where) for a in arrays), **settings)
    dy = np.asarray(np.random.default_rng(1).standard_normal(y.shape)).astype(y.dtype)
    return [to_host(a) for a in (y, *pair[1](to_device(dy, where), saved)) if a is not None]


def _off(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def vectors() -> Found:
    """The golden vectors, through ops.py on the device in float64, and through the kernels in float32."""
    failed, wrong, right = [], list[str](), 0
    for op, (forward, backward) in PAIRS.items():
        name = forward.__name__.removesuffix("_forward")
        for dtype, pair in (("float64", (forward, backward)), ("float32", _kernels(name))):
            if pair:
                try:
                    reference.check(op, *pair, framework="cupy", dtype=dtype)
                    right += 1
                except AssertionError as error:
                    failed.append(f"{op}, {dtype}")
                    wrong += [failed[-1], *str(error).splitlines()]
    text = f"{right} of {right + len(failed)} pairs are right: those of ops.py in float64, the kernels' in float32." + (
        f"\n\n{fenced(wrong[:60])}" if wrong else ""
    )
    return Found(not wrong, text, {"right": right})


def losses() -> Found:
    """The first losses of every scheme, on the CPU and on the device, plain and by kernels."""
    worst = 0.0
    rows: list[tuple[object, ...]] = [("scheme", "last loss, CPU", "GPU, plain", "GPU, kernels", "largest difference")]
    for scheme in SCHEMES:
        config = TrainConfig(**DEFAULT | {"scheme": scheme, "steps": LOSSES})
        corpus = _corpus(config)[0]
        found = []
        for device, kernels in (("cpu", "plain"), ("gpu", "plain"), ("gpu", "fast")):
            c = replace(config, kernels=kernels)
            trainer = Trainer(c, corpus, device)
            found.append([trainer.update(step)[0] for step in range(LOSSES)])
        cpu, *others = map(np.array, found)
        error = max(float(np.max(np.abs(other / cpu - 1))) for other in others)
        rows.append((scheme, *(f"{run[-1]:.5f}" for run in found), f"{error:.1e}"))
        worst = max(worst, error if np.isfinite(error) else np.inf)
    text = f"{LOSSES} steps. Allowed: {NOISE_OF_A_RUN:.0e}.\n\n{table(*rows)}"
    return Found(worst <= NOISE_OF_A_RUN, text, {"worst": worst})


def fp8() -> Found:
    """Bits of both roundings to FP8 against ml_dtypes' casts, on random bits and on what the formats have small."""
    rng = np.random.default_rng(0)
    bits = rng.integers(2**32, size=VALUES // 2, dtype=np.uint32).view(np.float32)  # of all sizes, and NaN
    near = rng.standard_normal(VALUES - len(bits)) * 2.0 ** rng.integers(-20, 18, VALUES - len(bits))
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40], np.float32)
    x = np.concatenate((bits, near.astype(np.float32), edges))
    rows: list[tuple[object, ...]] = [("format", "which", "values", "other bits")]
    for name, dtype in (("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)):
        fmt = FORMATS[name]
        with np.errstate(invalid="ignore"):
            expected = np.clip(x, -fmt.max, fmt.max).astype(dtype).astype(np.float32)
        number = ~np.isnan(expected)  # a NaN's own bits are nobody's business
        for which, rounding in (("ops", quantize), ("kernels", gpu.quantize)):
            found = to_host(rounding(to_device(x, "gpu"), fmt))
            other = int(np.count_nonzero(np.isnan(found) == number))
            other += int(np.count_nonzero(found.view(np.uint32)[number] != expected.view(np.uint32)[number]))
            rows.append((name, which, f"{len(x):,}", other))
    wrong = sum(int(str(row[-1])) for row in rows[1:])
    return Found(wrong == 0, table(*rows), {"values": len(x), "other_bits": wrong})


# ---- Does it train, and how fast? ----
def default() -> Found:
    """The default run, whole."""
    config = TrainConfig(**DEFAULT)
    _, result = train(config, _corpus(config)[0], device="gpu")
    text = (
        f"loss {result['loss_first']:.3f} -> {result['loss_final']:.3f} nats per token, validation "
        f"{result['loss_valid']:.3f}, {result['seconds']:.1f} s, {result['tokens_per_second']:,} tokens/s. "
        f"On a CPU it ends at {DEFAULT_LOSS:.2f}; allowed are {NOISE_OF_A_LOSS} more or less."
    )
    return Found(abs(result["loss_final"] - DEFAULT_LOSS) <= NOISE_OF_A_LOSS, text, result)


def paper() -> Found:
    """The first steps of the paper's preset."""
    config = TrainConfig(**PAPER | {"steps": PAPER_STEPS})
    corpus, lacking = _corpus(config)
    _, result = train(config, corpus, device="gpu")
    held = _attempt(lambda: f", {_xp().get_default_memory_pool().total_bytes() / 1e9:.1f} GB in CuPy's pool")
    expected = np.log(config.vocab_size)
    text = (
        f"{PAPER_STEPS} steps on {corpus.name}: loss {result['loss_first']:.3f} (log V is {expected:.3f}) -> "
        f"{result['loss_final']:.3f}, {result['seconds']:.1f} s, {result['tokens_per_second']:,} tokens/s{held}."
    )
    # logits start small beside 1, so the first loss is that of a guess; what cannot be learned stays there
    guess = abs(result["loss_first"] - expected) < 0.5
    learns = np.isfinite(result["loss_final"]) and (bool(lacking) or result["loss_final"] < result["loss_first"])
    return Found(bool(guess and learns), text + lacking, result)


def _corpus(config: TrainConfig) -> tuple[Corpus, str]:
    """The corpus of a config, or random tokens and a sentence that says so."""
    try:
        return load_corpus(config.corpus, vocab_size=config.vocab_size, seq_len=config.seq_len), ""
    except ValueError as error:
        dtype = np.uint8 if config.vocab_size <= BYTES else np.uint16
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, 2**18, dtype=dtype)
        return Corpus("random tokens", tokens, tokens, ByteTokenizer()), f" Its corpus is not there ({error})."


def _attempt(say: Callable[[], str]) -> str:
    try:
        return say()
    except Exception:  # CuPy's, of any kind
        return ""


ROUNDS = 10
NO_PEAKS = Gpu("", np.inf, np.inf, np.inf, np.inf, "")


def speed() -> Found:
    """A step of the default and of the paper's preset, plain and by kernels, against the ledger's estimate."""
    xp = _xp()
    name = _attempt(lambda: xp.cuda.runtime.getDeviceProperties(0)["name"].decode())
    known = next((g for key, g in GPUS.items() if key.removeprefix("rtx") in name.lower().replace(" ", "")), None)
    launch = _launch_seconds(xp)
    rows: list[tuple[object, ...]] = [
        (
            "config",
            "kernels",
            "ms a step",
            "estimate, ms",
            "ratio",
            "estimate at the launch measured",
            "GB/s",
            "TFLOP/s",
        )
    ]
    numbers: dict[str, Any] = {"device": name, "launch_us": 1e6 * launch, "steps": {}}
    for label, options in (("default", DEFAULT), ("paper", PAPER)):
        for kernels in ("fast", "plain"):
            config = TrainConfig(**options | {"kernels": kernels})
            ms = 1000 * _step_seconds(config)
            at_peaks, at_launch = (estimate(config, known or NO_PEAKS, launch=s) for s in (LAUNCH, launch))
            total = at_peaks["rows"][-1]
            ours = [f"{e['step_ms']:.2f}" if known else "?" for e in (at_peaks, at_launch)]
            ratio = f"{ms / at_peaks['step_ms']:.2f}" if known else "?"
            rates = f"{total['bytes'] / ms / 1e6:,.0f}", f"{total['flops'] / ms / 1e9:.2f}"
            rows.append((label, kernels, f"{ms:.2f}", ours[0], ratio, ours[1], *rates))
            numbers["steps"][f"{label}, {kernels}"] = {"ms": ms, "estimate_ms": at_peaks["step_ms"] if known else None}
    steps = {what: step["ms"] for what, step in numbers["steps"].items()}
    gains = ", ".join(f"{steps[f'{c}, plain'] / steps[f'{c}, fast']:.2f} of {c}" for c in ("default", "paper"))
    peaks = f"{known.name}, {known.source}" if known else f"none known of {name or 'this device'}"
    text = (
        f"Medians of {ROUNDS} steps. A launch takes {1e6 * launch:.1f} µs; the estimates take {1e6 * LAUNCH:.0f}. "
        f"Peaks: {peaks}. A plain step takes that much of one by kernels: {gains}.\n\n{table(*rows)}"
    )
    return Found(all(np.isfinite(ms) for ms in steps.values()), text, numbers)


def _step_seconds(config: TrainConfig) -> float:
    """Time of a step, its wait for the device included: the median of ROUNDS, after two that compile."""
    trainer, times = Trainer(config, _corpus(config)[0], "gpu"), []
    for step in range(ROUNDS + 2):
        began = perf_counter()
        trainer.update(step)
        times.append(perf_counter() - began)
    return median(times[2:])


def _launch_seconds(xp: Any, times: int = 1000) -> float:
    """Time that Python needs for a call of CuPy, as long as the device does not keep it waiting."""
    x = xp.zeros(1, dtype=np.float32)
    to_host(x + 1)
    began = perf_counter()
    for _ in range(times):
        x + 1
    took = perf_counter() - began
    to_host(x)
    return took / times


class Part(NamedTuple):
    """A part of the report: what runs, what it is, and the seconds it may take."""

    run: Callable[[], Found]
    what: str
    limit: int


PARTS = {
    "device": Part(device, "versions and the device", 60),
    "tests": Part(tests, "all tests marked gpu", 900),
    "ops": Part(ops_, "every op against NumPy", 300),
    "vectors": Part(vectors, "the golden vectors", 300),
    "losses": Part(losses, f"{LOSSES} losses of every scheme, CPU and GPU", 600),
    "fp8": Part(fp8, f"FP8's bits, of {VALUES:,} values", 120),
    "default": Part(default, "the default run", 900),
    "paper": Part(paper, f"{PAPER_STEPS} steps of the paper's preset", 900),
    "speed": Part(speed, "a step against the ledger's estimate", 900),
}


def run(name: str) -> Found:
    """What the part finds, in this process."""
    return PARTS[name].run()
