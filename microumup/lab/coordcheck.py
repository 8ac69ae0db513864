"""Does a scheme do what transfer over width, or depth, asks of it? A coordinate check that ends in a verdict.

A model is trained for a few steps on one batch at every width. If the learning rate found at one width is to serve at
another, the sizes of three things must go with the width as theory says: RMS ~ width^slope, with the slopes

                                      over width                                 over depth
    init     activations              0                                          0
             logits                   -1/2: the readout's A is 1/fan_in          0
             attention scores         0; with --heads -1/2: 1/K of a sum ~ √K    0
    effect   of hidden weights        0                                          -1/2: their C
             of the readout           0                                          0
             of the embedding         0; with u-µP's rule -1/2 (App. A.3)        0
    change   activations              0                                          0 … 1/4 in the trunk: (1 + x/L)^L
             attn_norm, q, k, v       with u-µP's rule -1/2 … 0: layer 0's       comes to e^x from below
                                      see the embedding itself
             logits, with --heads     -1/2 … 0: what they are made of changes,   0 … 1/4
             scores too               and what it is made with

`effect` is A Δw x, what the updates of a weight so far, Δw = w - w(0), do to its output: a matter of this weight's
learning rate alone. `change` is an activation less what it was at initialization, the sum of all effects before it.
All layers count together. Over depth, changes inside branches are left out: they depend on how far up the trunk the
branch stands. Every step is looked at, and of each tensor the step judged that is furthest off.

`sp` is held against the same, but for its scores and logits at init, 0. It claims no transfer and has none: over width
its effects grow, as C lacks the 1/fan_in; over depth its trunk does, at initialization as √depth.

A slope may be off by 1/4, half of what a wrong rule moves it by. What right ones need of it is for finite width. An
update by b tokens has √(1 + b/D) times the effect that it has in the limit: the part of x that it was made for adds up
over D elements, all others add up by chance. So tokens are few: with the default 16, slopes from width 64 on are off by
0.1 at most, with 128 by 0.2; over depth, from 2 layers on, by 0.2 too. Tokens are random: size is no matter of what a
text says. There is no warm-up and no weight decay, and η is 1/16 of the scheme's typical one: small steps go as theory
does, and a batch known by heart leaves no gradients to look at. A single seed or two sizes are quick, and noisy.

What four steps cannot show is looked at by --late (`late.py`), in half a minute on two cores: a whole short training at
every width, from the first update to the last the size of updates relative to what they meet, and what weight decay has
in them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isfinite, isnan, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microumup import cli
from microumup.backend import Array
from microumup.config import DECAYS, ModelConfig
from microumup.engine import Tensor, backpropagate
from microumup.fp8 import LINEARS
from microumup.lab import late
from microumup.lab import pictures as pic
from microumup.lab.scales import Op, loss_with_logits, named_ops
from microumup.lab.slopes import Row, furthest_off, powers, row_of, slope_cells
from microumup.lab.workers import run_all
from microumup.limits import check_least, option_name
from microumup.model import init_params
from microumup.optim import AdamW
from microumup.parametrization import SCHEMES
from microumup.plan import plan
from microumup.ranges import rms_of

WIDTHS = (64, 128, 256, 512, 1024)
SEQ_LEN = 16

MEASURES = {  # heading in the table, words of the verdict, title of a panel
    "init": ("RMS at initialization", "the size at initialization", "at initialization"),
    "effect": ("RMS of A Δw x, the effect of a weight's updates", "the effect of the updates", "effect of updates"),
    "change": ("RMS of the change since initialization", "the change by the updates", "change since init"),
}
TRUNK = ("attn_add", "ffn_add", "final_norm")
SAME_SIZE = ("attn_split", "ffn_split", "q_rope", "k_rope")  # not measured: the trunk as it is, q and k turned

Sizes = dict[tuple[str, str], float]  # RMS by measure and tensor


class Report(NamedTuple):
    """Findings of a check."""

    scheme: str
    axis: str  # width or depth
    sizes: tuple[int, ...]
    steps: int
    rows: list[Row]  # of every step

    @property
    def judged(self) -> list[Row]:
        """Row of every tensor and measure that is furthest off what is expected."""
        return furthest_off(self.rows)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.judged if row.verdict != "ok"]

    @property
    def passed(self) -> bool:
        return not self.failed


def coordcheck(
    config: ModelConfig, *, widths: Sequence[int] = WIDTHS, depths: Sequence[int] = (), heads: int | None = None,
    seeds: Sequence[int] = (0, 1, 2), steps: int = 4, batch_size: int = 1, lr: float | None = None,
    workers: int = 0, progress: bool = False,
) -> Report:  # fmt: skip
    """Train `config` at all `widths`, or at all `depths` (layers) if there are any, and look how its tensors scale.

    `heads` is their number at every width; without it the head dim is `config`'s. `lr` is η. All runs are in this
    process, with whatever has been replaced in it, or in as many others as there are `workers`. Raises ValueError for
    fewer than two sizes, and for one that no network can have.
    """
    axis, sizes = ("depth", depths) if depths else ("width", widths)
    sizes = tuple(sorted(set(sizes)))
    if len(sizes) < 2:
        raise ValueError(f"--{axis}s: {', '.join(map(str, sizes))} gives no slope; name two or more that differ")
    if heads is not None and (heads < 1 or depths or any(size % heads for size in sizes)):
        raise ValueError(f"--heads: {heads} has to divide every width of a check over --widths")
    eta = SCHEMES[config.scheme].typical_lr / 16 if lr is None else lr
    if not (isfinite(eta) and eta > 0):
        raise ValueError(f"--lr: {eta} is not a positive finite number")

    def model(size: int) -> ModelConfig:
        head_dim = size // heads if heads else config.head_dim
        return replace(config, layers=size) if depths else replace(config, width=size, head_dim=head_dim)

    jobs = [(model(size), seed) for size in reversed(sizes) for seed in seeds]  # those that take longest first
    look = partial(run, steps=steps, batch_size=batch_size, lr=eta)
    runs = dict(zip(jobs, run_all(look, jobs, workers, progress=progress), strict=True))
    rows = []
    for step, tensors in enumerate(runs[jobs[0]]):
        for measure, tensor in tensors:
            if expected := expected_slope(measure, tensor, config, axis, fixed_heads=heads is not None):
                rms = [[runs[model(size), seed][step][measure, tensor] for size in sizes] for seed in seeds]
                rows.append(row_of(measure, tensor, step, sizes, np.array(rms), expected))
    return Report(config.scheme, axis, sizes, steps, rows)


# ---- Measuring ----
@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # to diverge is an answer, too
def run(job: tuple[ModelConfig, int], *, steps: int, batch_size: int, lr: float) -> list[Sizes]:
    """The size of every tensor of a model, from a seed, at initialization and after every step: always on the same
    batch of random tokens."""
    (c, seed), seen = job, []
    params = init_params(c, seed)
    tokens, targets = np.random.default_rng(seed).integers(c.vocab_size, size=(2, batch_size, c.seq_len))
    numbers = plan(c, tokens.size)
    optimizer = AdamW(params, {name: w.C for name, w in numbers.weights.items()}, lr=lr)
    for step in range(steps + 1):
        leaves = {name: Tensor(w, name) for name, w in params.items()}
        out = loss_with_logits(leaves, tokens, targets, numbers)
        ops = named_ops(out)
        now = activations(ops)
        if step == 0:
            start, w_start = now, {op.weight.name: op.weight.data.copy() for op in ops if op.weight}
            seen.append(_sizes("init", now))
        else:
            changes = {name: [a - b for a, b in zip(now[name], start[name], strict=True)] for name in now}
            del changes["embedding"]  # that is the effect of its updates
            seen.append(_sizes("effect", effects(ops, w_start)) | _sizes("change", changes))
        if step < steps:
            backpropagate(out)
            optimizer.step({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, 1.0)
    return seen


def activations(ops: list[Op]) -> dict[str, list[Array]]:
    """Outputs of every op, by name, layer after layer; and attention's scores, of pairs that see each other."""
    found = defaultdict(list)
    for op in ops:
        if op.kind not in SAME_SIZE:
            found[op.kind].append(op.node.data)
        if op.kind == "attention":
            q, k, _, _, score_scale, _ = op.node.saved  # (B, H, T, K)
            scores = score_scale * (q @ k.swapaxes(-1, -2))  # (B, H, T, T)
            found["scores"].append(scores[..., np.tri(scores.shape[-1], dtype=bool)])
    return found


def effects(ops: list[Op], w_start: dict[str, Array]) -> dict[str, list[Array]]:
    """A Δw x of every weight, shape of its output: x as it is now, Δw what it has gained over `w_start`."""
    found = defaultdict(list)
    for op in ops:
        if op.weight:
            x, _, scale, *_ = op.node.saved  # of an embedding x are the tokens
            delta = op.weight.data - w_start[op.weight.name]
            found[op.kind].append(scale.y * (x @ delta.T if op.node.op == "linear" else delta[x]))
    return found


def _sizes(measure: str, arrays: dict[str, list[Array]]) -> Sizes:
    """RMS over all layers, whose arrays have one shape."""
    return {(measure, name): sqrt(sum(rms_of(a) ** 2 for a in of) / len(of)) for name, of in arrays.items()}


# ---- Judging ----
def expected_slope(
    measure: str, tensor: str, config: ModelConfig, axis: str, *, fixed_heads: bool = False
) -> tuple[float, float] | None:
    """The least and the greatest right slope, from the table above; None for what is not judged.

    It depends on the scheme's name and not on its rules: a mistake in a rule must not move what is expected of it.
    """
    zero, half = (0.0, 0.0), (-0.5, -0.5)
    if axis == "depth":
        if measure == "change":
            return (0.0, 0.25) if tensor in (*TRUNK, "head") else None
        return half if measure == "effect" and tensor in LINEARS and tensor != "head" else zero
    starts_small = config.scheme != "sp" and (tensor == "head" or (tensor == "scores" and fixed_heads))
    slow_embedding = "embedding_lr_rule" in SCHEMES[config.scheme].hyperparameters and config.embedding_lr_rule
    if measure == "change":
        near_embedding = slow_embedding and tensor in ("attn_norm", "q", "k", "v")
        return (-0.5, 0.0) if starts_small or near_embedding else zero
    return half if (starts_small if measure == "init" else slow_embedding and tensor == "embedding") else zero


def rule_behind(row: Row, axis: str) -> str:
    """Rule to look at when a tensor's size goes wrong."""
    weight = {"embedding": "input", "head": "output"}.get(row.tensor, "hidden" if row.tensor in LINEARS else "")
    if row.measure == "effect":
        in_branch = axis == "depth" and weight == "hidden"
        return f"C, the learning rate factor, of {'weights in branches' if in_branch else f'the {weight} weights'}"
    if row.tensor == "scores":
        return "the factor before attention's softmax"
    if row.measure == "init":
        if weight:
            return f"A and √B, multiplier and initial std, of the {weight} weights"
        return "a and b, the residual multipliers" if row.tensor in TRUNK else "the op's own factor"
    return "the multipliers that updates pass on their way"


# What no coordinate check sees, from docs/figures/fig6.json: there the learning rates were searched in whole trainings
DRIFT_OVER_DEPTH = (
    " Over depth that is much: in whole trainings the best learning rate moved from 1 to 8 layers by +1.66 octaves for "
    "u-µP and by +0.79 for µP (docs/figures/fig6.json)."
)


def reading(report: Report) -> str:
    """The verdict in words, to be understood without the table."""
    axis, sizes, failed, count = report.axis, report.sizes, report.failed, len(report.judged)
    if not failed:
        return (
            f"PASS: from {axis} {sizes[0]} to {sizes[-1]} all {count} slopes are as they should be. That is what "
            f"{report.steps} updates on one batch at a small η can show. They cannot show what weight decay, Adam's ε "
            f"under small gradients, and the late part of a training do to the best learning rate; --late looks at the "
            f"first and the last of these."
            f"{DRIFT_OVER_DEPTH if axis == 'depth' else ''}"
        )
    causes = [(row.measure, row.verdict, rule_behind(row, axis)) for row in failed]
    (measure, verdict, rule), right = causes[0], powers(failed[0].expected, axis)
    alike = [row for row, cause in zip(failed, causes, strict=True) if cause == causes[0]]
    lr, models = "high" if verdict == "too large" else "low", "wide" if axis == "width" else "deep"
    consequence = f" One learning rate for all is too {lr} for {models} models." if measure != "init" else ""
    if len(sizes) < 3 or isnan(failed[0].interval):
        consequence += f" But one seed, or two {axis}s, are noisy: look again with --seeds 3 and a third {axis}."
    return (
        f"FAIL: {len(failed)} of {count} slopes are not as they should be. Look first at {rule}: "
        f"{MEASURES[measure][1]} of {', '.join(row.tensor for row in alike)} goes as "
        f"{powers([row.slope for row in alike], axis)} where {right} is right.{consequence}"
    )


# ---- The command ----
EXAMPLES = """  microumup coordcheck                            over width, in seconds
  microumup coordcheck --depths 2,4,8,16
  microumup coordcheck --late --plot late.png     later, with weight decay of every kind
  microumup coordcheck --late --scheme mup --decay coupled --weight-decay 0.1"""


def main(argv: list[str] | None = None) -> int:
    """The command `coordcheck`: 0 when the scheme passes, 1 when it does not, 2 on a bad argument."""
    parser = cli.Parser("coordcheck", __doc__ or "", examples=EXAMPLES)
    cli.add_options(parser, ModelConfig)
    # the model's own --width, --layers and --seq-len give way to those of the check
    group = parser.add_argument_group("the check", conflict_handler="resolve")

    N: dict[str, Any] = {"type": cli.whole, "metavar": "N"}
    sizes: dict[str, Any] = {"type": lambda text: [*map(cli.whole, text.split(","))], "metavar": "N,N,…"}
    group.add_argument("--widths", **sizes, help=f"to check over (default: {', '.join(map(str, WIDTHS))}; "
                       f"with --late {', '.join(map(str, late.WIDTHS))})")  # fmt: skip
    group.add_argument("--depths", **sizes, help="numbers of layers, to check over them instead")
    group.add_argument("--width", **N, help=f"over depths: D (default: {ModelConfig.width})")
    group.add_argument("--layers", **N, help=f"over widths (default: {ModelConfig.layers})")
    group.add_argument("--heads", **N, help="as many at every width, so that head dims grow")
    group.add_argument("--lr", type=cli.number, metavar="X", help="η, constant (default: 1/16 of train's); with "
                       "--late the peak (default: 1/4)")  # fmt: skip
    group.add_argument("--seq-len", **N, default=SEQ_LEN, help="s, tokens in a sequence (default: %(default)s)")
    group.add_argument("--batch-size", **N, help=f"B, sequences in the batch (default: 1; {late.BATCH_SIZE})")
    group.add_argument("--steps", **N, help=f"updates (default: 4; {late.STEPS})")
    group.add_argument("--late", action="store_true", help="look at updates and weight decay throughout a training")
    group.add_argument("--weight-decay", type=cli.number, metavar="X", help="with --late: λ (default: 2 / steps)")
    group.add_argument("--decay", choices=DECAYS, help="with --late: this one alone (default: independent, judged, "
                       "and the others beside it)")  # fmt: skip
    cli.shared(group, seeds="models of every size", seed="the first of the seeds", workers="; 0: just this one")
    cli.shared(parser, "plot", "quiet", json="passed, rows of all steps")
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        args.steps = args.steps if args.steps is not None else late.STEPS if args.late else 4
        args.batch_size = args.batch_size if args.batch_size is not None else late.BATCH_SIZE if args.late else 1
        check_least(args, steps=1, seeds=1, seed=0, batch_size=1, workers=0)
        for name in ("depths", "heads") if args.late else ("decay", "weight_decay"):
            if getattr(args, name) is not None:
                words = "--late is over --widths, with head dims of one size" if args.late else "it goes with --late"
                raise ValueError(f"{option_name(name)}: leave it out; {words}")
        for name in ("widths", "layers") if args.depths else ("width",):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name}: leave it out; the check is over --{'depths' if args.depths else 'widths'}")
        options = {name: value for name, value in cli.given(args, ModelConfig).items() if value is not None}
        if not args.depths:  # any width that fits the head dim, until each of --widths takes its place
            options["width"] = max(4, 4 * options.get("head_dim", ModelConfig.head_dim))
        how: dict[str, Any] = {"seeds": range(args.seed, args.seed + args.seeds), "workers": args.workers}
        how["progress"] = not args.quiet
        report: Report | late.Report
        if args.late:
            config, decays = late.config_of(args, options), () if args.decay else DECAYS
            report = late.late(config, widths=args.widths or late.WIDTHS, decays=decays, **how)
            shown, verdict = late.table(report), late.reading(report)
        else:
            report = coordcheck(
                ModelConfig(**options), widths=args.widths or WIDTHS, depths=args.depths or (), heads=args.heads,
                steps=args.steps, batch_size=args.batch_size, lr=args.lr, **how,
            )  # fmt: skip
            shown, verdict = table(report), reading(report)
    say = cli.say(args.quiet)
    say(f"{shown}\n\n{verdict}")
    if args.plot:
        with cli.bad_input(parser):
            late.plot(args.plot, report) if isinstance(report, late.Report) else plot(args.plot, report)
        say(f"drawn to {args.plot}")
    cli.json_line(args, {"passed": report.passed} | report._asdict() | {"reading": verdict})
    return 0 if report.passed else 1


def table(report: Report) -> str:
    """A line per tensor: its RMS at every size, the slope, the expected one and the verdict."""
    sizes = "".join(f"{f'{report.axis} {size}':>12}" for size in report.sizes)
    lines = [f"{report.scheme:14}{sizes}  step   slope ± 95 %    expected  verdict"]
    for measure, (heading, *_) in MEASURES.items():
        lines += ["", heading]
        for row in report.judged:
            if row.measure == measure:
                rms = "".join(f"{rms:12.3g}" for rms in row.rms)
                slope, expected = slope_cells(row)
                lines.append(f"  {row.tensor:12}{rms}{row.step:6}{slope:15}{expected:>12}  {row.verdict}")
    return "\n".join(lines)


def plot(path: Path, report: Report) -> None:
    """Draw the RMS over width or depth: at initialization, and after up to four steps. Raises ValueError without
    matplotlib, OSError where `path` cannot be written.
    """
    steps = sorted({round(step) for step in np.linspace(1, report.steps, 4)})
    figure = pic.new_figure(2.8 * (1 + len(steps)), 7)
    mosaic = [["init", *(f"effect {step}" for step in steps)], ["keys", *(f"change {step}" for step in steps)]]
    axes = figure.subplot_mosaic(mosaic, sharey=True)
    tensors = list(dict.fromkeys(row.tensor for row in report.rows))
    looks = ({"color": colour, "marker": marker, "markersize": 4} for marker in "osv" for colour in pic.COLOURS)
    styles = dict(zip(tensors, looks, strict=False))
    for row in report.rows:
        panel = f"{row.measure} {row.step}" if row.step else "init"
        if panel in axes:
            style = {"linewidth": 1} if row.verdict == "ok" else {"linewidth": 2, "linestyle": "--"}
            axes[panel].plot(report.sizes, row.rms, **styles[row.tensor], **style)
            axes[panel].set_title(MEASURES[row.measure][2] + f", step {row.step}" * bool(row.step))
    for panel, ax in axes.items():
        ax.loglog(base=2)
        xlabel = "" if panel.startswith("effect") else report.axis
        ax.set(xlabel=xlabel, xticks=report.sizes, xticklabels=report.sizes)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelleft=True)
    axes["init"].set_ylabel("RMS")
    keys = [axes["init"].plot([], [], **style)[0] for style in styles.values()]
    axes["keys"].axis("off")
    axes["keys"].legend(keys, tensors, loc="center", ncols=2, frameon=False)
    figure.suptitle(f"{report.scheme}: {'PASS' if report.passed else 'FAIL. Dashed: what goes wrong'}")
    pic.save(figure, path)
