"""microumup: the u-µP paper as running code that one person can read in an evening.

Read the CHAPTERS in their order: each imports only those before it, and APPENDICES that read none after it. Around the
book lie `lab`, which measures, and `interop`, which talks to others; no chapter and no appendix imports these.
"""

import os
from importlib import import_module
from typing import Any

# Matrices are small here: a second BLAS thread gains a tenth on an idle machine and loses fivefold on a busy one. This
# works because numpy is not imported yet when a command starts, and yields to a setting of your own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"

CHAPTERS = (
    "backend", "engine", "fp8", "ops", "multipliers", "parametrization", "config", "plan", "model", "optim", "data",
    "trainer",
)  # fmt: skip
APPENDICES = {
    "checks": "checks of the ops' arguments",
    "limits": "what an option may be, and what there is memory for",
    "devices": "GPUs as this machine has them: which there are, and how they multiply",
    "cpu": "blocks, threads, memory and matrix products: all that exists for a processor's sake",
    "fused": "some pairs of ops.py once more, faster on a CPU",
    "cuda": "the kernels of gpu.py in CUDA, and their launch",
    "gpu": "most pairs of ops.py once more, for a GPU",
    "corpora": "texts, shipped or your own; BPE tokens",
    "token_files": "tokens on the disk, made once, mapped, known by checksums",
    "files": "files that are whole or not there, and know when they were changed",
    "checkpoint": "arrays in such a file",
    "diverged": "the end of a run whose numbers are none any more",
    "records": "the numbers that a step and a run leave",
    "older": "what older versions wrote otherwise",
    "run_dir": "what a run leaves behind, and how it goes on from there",
    "ranges": "how the operands of every linear lie in FP8's range",
    "generate": "text from a trained model",
    "cli": "parts of every command",
    "train": "the command train",
    "prepare": "the command data: WikiText-103, downloaded and tokenized",
}


def __getattr__(name: str) -> Any:
    """`microumup.reference`, the one module of `interop` that other programs call: imported when it is asked for."""
    if name == "reference":
        return import_module("microumup.interop.reference")
    raise AttributeError(f"module 'microumup' has no attribute {name!r}")
