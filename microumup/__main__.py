"""`python -m microumup NAME …`, also installed as `microumup NAME …`: every command, by name."""

import sys
from importlib import import_module

from microumup import __version__, cli

COMMANDS = {
    "train": ("microumup.lab.from_sweep", "train a Llama on text; also python -m microumup.train"),
    "data": ("microumup.prepare", "make WikiText-103 ready for --preset paper, or tokens of a text of your own"),
    "generate": ("microumup.generate", "let a trained model continue a text"),
    "explain": ("microumup.lab.explain", "every number a scheme gives each weight: why a model does not learn"),
    "gradcheck": ("microumup.lab.gradcheck", "check every gradient, of every op and of whole models"),
    "scales": ("microumup.lab.scales", "RMS and FP8 range of every tensor that a linear multiplies"),
    "coordcheck": ("microumup.lab.coordcheck", "does a scheme scale over width, or depth? PASS or FAIL, and why"),
    "chain": ("microumup.lab.chain", "from sp to u-µP, row by row: what each step keeps of a half-trained network"),
    "zoo": ("microumup.lab.zoo", "planted mistakes, and which check catches which"),
    "fp8-gap": ("microumup.lab.fp8_gap", "what FP8 by a plain cast costs u-µP, and what it does to µP"),
    "sweep": ("microumup.lab.sweep", "many trainings: a grid, random points or an independent search; resumable"),
    "transfer": ("microumup.lab.transfer", "the learning rate and loss of a large run, from a sweep of small ones"),
    "figures": ("microumup.lab.figures.command", "every figure of the paper: run, drawn, and judged in numbers"),
    "fit_scale": ("microumup.lab.fit_scale", "a multiplier rule for an op the paper lacks: measured, fitted, printed"),
    "vectors": ("microumup.interop.vectors", "golden vectors: write them, check what another program made of them"),
    "curve": ("microumup.lab.curve", "loss curves of runs, as a table or a picture"),
    "gpu-report": ("microumup.lab.gpu_report", "for someone with a GPU: does it all run there, right and fast? A page"),
    "bench": ("microumup.lab.bench", "the speed of a step, against PyTorch, unit-scaling and its own matrix products"),
}


def dispatch() -> int:
    """Run the command that the first argument names, or list them all."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name == "help":
        name, *rest = [*rest[:1], "--help"]
    name = next((known for known in COMMANDS if known.replace("_", "-") == name.replace("_", "-")), name)
    if name in ("-h", "--help"):
        print(f"microumup {__version__}: u-µP, the paper as running code\n\nusage: microumup COMMAND [--help]\n")
        print("\n".join(f"  {command:<12}{line}" for command, (_, line) in COMMANDS.items()))
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        mend = cli.perhaps(name, COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
        print(f"microumup: there is no command {name!r}{mend}", file=sys.stderr)
        return 2
    status: int = import_module(COMMANDS[name][0]).main(rest)
    return status


def main() -> None:
    """The console script."""
    cli.run(dispatch)


if __name__ == "__main__":
    main()
