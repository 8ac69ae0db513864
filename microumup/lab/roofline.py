"""What a training step asks of a GPU, and how long it would take there at best: an estimate, made without one.

    time of a launch = LAUNCH + max(bytes / bandwidth, FLOPs of products / their peak + other FLOPs / float32's peak)

The step is that of the Trainer, on arrays without data (`shapes.py`), so launches, bytes, FLOPs and memory are those of
the code that will run. The peaks are what makers publish, which no program reaches: nothing here was measured.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from microumup import cli
from microumup.config import PRESETS, TrainConfig
from microumup.corpora import ByteTokenizer
from microumup.data import Corpus
from microumup.lab import search, shapes
from microumup.lab.ledger import Call
from microumup.lab.tables import text_table
from microumup.trainer import Trainer

LAUNCH = 10e-6  # seconds that a call of CuPy keeps Python busy, about: an assumption, to be replaced by gpu-report's


class Gpu(NamedTuple):
    """Published peaks of a device, per second, and its bytes of memory."""

    name: str
    float32: float  # FLOPs, dense, outside tensor cores
    tf32: float  # FLOPs, dense, in tensor cores
    bandwidth: float  # bytes
    memory: float
    source: str


GPUS = {
    "h100": Gpu("NVIDIA H100 SXM, 80 GB", 67e12, 495e12, 3.35e12, 80e9, "NVIDIA's H100 data sheet of 2023"),
    "a100": Gpu("NVIDIA A100 SXM, 80 GB", 19.5e12, 156e12, 2.039e12, 80e9, "NVIDIA's A100 data sheet of 2021"),
    "rtx4090": Gpu("NVIDIA RTX 4090, 24 GB", 82.6e12, 82.6e12, 1.008e12, 24e9, "NVIDIA's Ada white paper of 2022"),
}


class Step(NamedTuple):
    """The second training step of a config on a GPU: its launches, and what else it takes."""

    calls: list[Call]
    syncs: int  # waits for the device; the look at losses, every --log-every steps, comes on top
    uploads: int  # arrays sent to it
    held: int  # bytes alive before the step: weights and the optimizer's
    peak: int  # bytes alive at most within it


def count_step(config: TrainConfig, *, copies: bool = True) -> Step:
    """What a step of the config asks of a GPU, by `config.kernels`."""
    tokens = np.zeros(config.seq_len + 1, np.uint16)  # as good as any: shapes are all that is looked at
    with shapes.installed(copies=copies) as meter:
        trainer = Trainer(config, Corpus("no text", tokens, tokens, ByteTokenizer()), "gpu")
        trainer.launch(0)  # after which all that is kept from step to step is there
        meter.clear()
        held = meter.live
        trainer.launch(1)
        return Step(meter.calls, meter.syncs, meter.uploads, held, meter.peak)


def seconds(call: Call, device: Gpu, *, tf32: bool = False, launch: float = LAUNCH) -> float:
    """Estimated time of a launch, of which Python takes `launch`."""
    computing = call.gemm_flops / (device.tf32 if tf32 else device.float32) + call.other_flops / device.float32
    return launch + max(call.bytes / device.bandwidth, computing)


def estimate(config: TrainConfig, device: Gpu, *, launch: float = LAUNCH) -> dict[str, Any]:
    """The ledger of a step: a row for each op, those that take longest first, the last the total; what else it takes;
    and the estimated times of the step and of the whole run."""
    step, rows = count_step(config), dict[str, dict[str, Any]]()
    for call in step.calls:
        for op in (call.op, "total"):
            row = rows.setdefault(op, {"op": op, "launches": 0, "bytes": 0, "flops": 0, "ms": 0.0})
            row["launches"] += 1
            row["bytes"] += call.bytes
            row["flops"] += call.gemm_flops + call.other_flops
            row["ms"] += 1000 * seconds(call, device, tf32=config.tf32, launch=launch)
    ordered = sorted(rows.values(), key=lambda row: (row["op"] == "total", -row["ms"]))
    took = ordered[-1]["ms"] / 1000
    return {
        "rows": ordered, "launches": len(step.calls), "syncs": step.syncs, "uploads": step.uploads,
        "held_bytes": step.held, "peak_bytes": step.peak, "fits": step.peak <= device.memory, "step_ms": 1000 * took,
        "tokens_per_second": config.batch_size * config.seq_len / took, "run_hours": config.steps * took / 3600,
    }  # fmt: skip


# ---- The command: `bench --ledger --gpu` ----
def parse_options(preset: str, texts: Iterable[str]) -> TrainConfig:
    """The config of a preset and OPTION=VALUE each. Raises ValueError, naming --with, for what is none."""
    options = dict(PRESETS[preset])
    for text in texts:
        try:
            name, values = search.parse_grid(text)
        except ValueError as error:
            raise ValueError(str(error).replace("--grid", "--with")) from None
        if len(values) != 1:
            raise ValueError(f"--with {text}: has {len(values)} values; name one, and repeat --with for another option")
        options[name] = values[0]
    return TrainConfig(**options)


def main(preset: str, name: str, texts: Iterable[str], args: Any) -> int:
    """Print the ledgers of a step by kernels and plain; 1 if the one that was asked for does not fit the device.

    Raises ValueError as `parse_options` does.
    """
    config, device, say = parse_options(preset, texts), GPUS[name], cli.say(args.quiet)
    found = {kernels: estimate(replace(config, kernels=kernels), device) for kernels in ("fast", "plain")}
    asked = found[config.kernels]
    say(
        f"preset {preset}{''.join(f', {text}' for text in texts)}: {config.batch_size} x {config.seq_len} tokens a step"
    )
    say(f"on an {device.name}: {device.bandwidth / 1e12:.2f} TB/s, {device.float32 / 1e12:.1f} TFLOP/s in float32, "
        f"{device.tf32 / 1e12:.1f} in TF32, after {device.source};\n{1e6 * LAUNCH:.0f} µs a launch are assumed. All "
        "times are estimates: nothing was measured")  # fmt: skip
    for kernels, ledger in found.items():
        say(f"\n{table(kernels, ledger)}")
    if not asked["fits"]:
        say(f"\ntoo large for {device.memory / 1e9:.0f} GB: {mend(config, asked, found)}")
    elif not found["plain"]["fits"]:
        say(f"\nplain needs more than the {device.memory / 1e9:.0f} GB there are: keep --kernels fast")
    whole = {"preset": preset, "options": list(texts), "gpu": device._asdict(), "launch_seconds": LAUNCH}
    cli.json_line(args, whole | {"asked": config.kernels, **found})
    return 0 if asked["fits"] else 1


def mend(config: TrainConfig, asked: dict[str, Any], found: dict[str, dict[str, Any]]) -> str:
    """Advice for a step that does not fit."""
    if config.kernels == "plain" and found["fast"]["fits"]:
        return f"take --kernels fast, which needs {found['fast']['peak_bytes'] / 1e9:.1f} GB, or a --micro-batch"
    size = config.micro_batch or config.batch_size
    return f"take --micro-batch {max(1, size // 2)} or less" if size > 1 else "take a smaller model, or another GPU"


def table(kernels: str, ledger: dict[str, Any]) -> str:
    """A line for every op, and what follows."""
    what = {"fast": "with kernels (--kernels fast)", "plain": "ops.py alone (--kernels plain)"}[kernels]
    lines = [[what, "launches", "MB", "GFLOP", "ms, estimated"]]
    for row in ledger["rows"]:
        cells = f"{row['bytes'] / 1e6:,.1f}", f"{row['flops'] / 1e9:,.1f}", f"{row['ms']:.2f}"
        lines.append([row["op"], f"{row['launches']:,}", *cells])
    hours = ledger["run_hours"]
    run = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    return (
        f"{text_table(lines, '<>>>>')}\n"
        f"memory: {ledger['peak_bytes'] / 1e9:.2f} GB at most, {ledger['held_bytes'] / 1e9:.2f} between steps, and "
        "what CuPy's pool and libraries add\n"
        f"waits for the device: {ledger['syncs']} a step, uploads: {ledger['uploads']}\n"
        f"estimate: {ledger['step_ms']:.1f} ms a step, {ledger['tokens_per_second']:,.0f} tokens/s, the run {run}"
    )
