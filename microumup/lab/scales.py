"""The scale of every tensor, and how the operands of every linear lie in FP8's range.

`measured_rms` looks at all tensors of a tape, to be compared with `expected.expected_rms`; `linear_ranges` at those
that FP8 training casts: x, w and dy of every linear. Both take a loss after `backpropagate(loss, keep=True)`.
The command prints the latter: of a model at initialization, or of a run at the first and last step that `train
--log-scales EVERY` logged, or at its checkpoint. Drawn, that is the paper's Fig. 3, and along training its Fig. 8.
"""

import argparse
from collections import Counter
from math import inf, log2, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microumup import cli, ops
from microumup.backend import Array, choose_device, to_device
from microumup.config import PRESETS, ModelConfig, TrainConfig
from microumup.cpu import Arrays
from microumup.data import batch, load_corpus
from microumup.engine import Tensor, backpropagate, tape
from microumup.fp8 import FORMATS, LINEARS, TENSORS, Format
from microumup.generate import load_model
from microumup.lab import pictures as pic
from microumup.lab.expected import expected_rms
from microumup.limits import option_name
from microumup.model import Params, forward, init_params
from microumup.plan import Plan, plan
from microumup.ranges import Range, Ranges, casts_or_fp8, grad_of, linear_ranges, read_scales, rms_of
from microumup.run_dir import load_config

PLACES = {  # of the ops without a weight, in the order in which a layer has them
    "residual_split": ("attn_split", "ffn_split"), "rms_norm": ("attn_norm", "ffn_norm"), "rope": ("q_rope", "k_rope"),
    "attention": ("attention",), "gated_silu": ("gated_silu",), "residual_add": ("attn_add", "ffn_add"),
}  # fmt: skip


# ---- Measuring ----
class Op(NamedTuple):
    """An op of a tape, named by its weight (layer0.q, head) or its place (layer0.attn_norm, layer0.ffn_add)."""

    name: str
    node: Tensor
    weight: Tensor | None

    @property
    def kind(self) -> str:
        """The name without the layer."""
        return self.name.rpartition(".")[2]


def named_ops(loss: Tensor) -> list[Op]:
    """Every op from the embedding to the logits."""
    nodes = tape(loss)[:-1]  # the last is the loss
    layers = sum(node.op == "attention" for node in nodes)
    seen: Counter[str] = Counter()
    found = []
    for node in nodes:
        if node.op in ("linear", "embedding"):
            w = node.inputs[1]
            assert isinstance(w, Tensor)
            found.append(Op(w.name, node, w))
        else:
            layer, place = divmod(seen[node.op], len(PLACES[node.op]))
            seen[node.op] += 1
            found.append(Op(f"layer{layer}.{PLACES[node.op][place]}" if layer < layers else "final_norm", node, None))
    return found


def measured_rms(loss: Tensor) -> dict[str, float]:
    """RMS of every tensor from the embedding to the logits, forward and backward.

    Every op has .y and .dy; the embedding and linears have .w and .dw too, and linears .x and .dx: the gradient that
    this linear passes on, its share where several have the same x. Raises ValueError without gradients.
    """
    rms: dict[str, float] = {}
    for name, node, w in named_ops(loss):
        if w:
            rms |= {f"{name}.w": rms_of(w.data), f"{name}.dw": rms_of(grad_of(w))}
        if node.op == "linear":
            x, dx = node.inputs[0], ops.linear_backward(grad_of(node), node.saved)[0]
            assert isinstance(x, Tensor)
            rms |= {f"{name}.x": rms_of(x.data), f"{name}.dx": rms_of(dx)}
        rms |= {f"{name}.y": rms_of(node.data), f"{name}.dy": rms_of(grad_of(node))}
    return rms


def loss_with_logits(params: Params, tokens: Array, targets: Array, numbers: Plan) -> Tensor:
    """`model.loss` with the readout and the loss as two ops, so that the logits are on the tape."""
    alpha = numbers.config.alpha_loss_softmax
    return ops.cross_entropy(forward(params, tokens, numbers), targets, alpha=alpha, scale=numbers.loss)


def kept_loss(params: Arrays, tokens: Array, targets: Array, config: ModelConfig, device: str = "cpu") -> Tensor:
    """The loss on tokens and targets (B, T), with all gradients taken and the whole tape kept."""
    leaves = {name: Tensor(to_device(w, device), name) for name, w in params.items()}
    out = loss_with_logits(leaves, to_device(tokens, device), to_device(targets, device), plan(config, tokens.size))
    backpropagate(out, keep=True)
    return out


def fresh_loss(config: ModelConfig, batch_size: int, *, seed: int = 0, device: str = "cpu") -> Tensor:
    """`kept_loss` of a new model, on uniformly random tokens and targets."""
    tokens, targets = np.random.default_rng(seed).integers(config.vocab_size, size=(2, batch_size, config.seq_len))
    return kept_loss(init_params(config, seed), tokens, targets, config, device)


# ---- The command ----
DESCRIPTION = """RMS, absmax, share flushed to zero and share saturated in FP8, for x, w and dy of every linear.

Shows a new model on random tokens; a run at the first and last step that train --log-scales logged, or else at its
checkpoint."""


def main(argv: list[str] | None = None) -> int:
    """The command `scales`."""
    parser = cli.Parser("scales", DESCRIPTION, operands="[RUN_DIR]", examples=(
        "  microumup scales --scheme mup                       a new model\n"
        "  microumup train --log-scales 100 --out runs/mine && microumup scales runs/mine --plot a.png"))  # fmt: skip
    parser.add_argument("run_dir", type=Path, nargs="?", metavar="RUN_DIR", help="a run (default: a new model)")
    cli.add_options(parser, TrainConfig)
    parser.add_argument("--preset", choices=PRESETS, help="of the new model (default: tiny)")
    cli.shared(parser, "device", "plot", "quiet", json="the formats; the tensors by step")
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        title, logged, expected = _look(args)
    shown = {step: logged[step] for step in (min(logged), max(logged))}
    say = cli.say(args.quiet)
    say(title)
    for fmt in FORMATS.values():
        say(f"{fmt.name}: " + ", ".join(f"{name} {_power(limit)}" for name, limit in limits(fmt).items()))
    say("drawn at the right: o RMS, x absmax; [ min subnormal, : min normal, ] max of the format")
    for step, ranges in shown.items():
        say(f"\nstep {step}\n{table(ranges, expected)}\n{verdict(ranges)}{note(ranges)}")
    if args.plot:
        with cli.bad_input(parser):
            rms = {step: {name: r.rms for name, r in ranges.items()} for step, ranges in logged.items()}
            plot(args.plot, rms, title)
        say(f"\ndrawn to {args.plot}")
    formats = {fmt.name: limits(fmt) for fmt in FORMATS.values()}
    cli.json_line(args, {"formats": formats, "steps": shown} | ({"expected_rms": expected} if expected else {}))
    return 0


def _look(args: argparse.Namespace) -> tuple[str, dict[int, Ranges], dict[str, float]]:
    """Things to show: a title, the ranges by step, and the RMS to expect where it is known."""
    options, run_dir = cli.given(args, TrainConfig), args.run_dir
    if run_dir is None:
        config = TrainConfig(**PRESETS[args.preset or "tiny"] | options)
        out = fresh_loss(config, config.batch_size, seed=config.seed, device=choose_device(args.device))
        expected = expected_rms(config) if config.scheme == "umup" else {}
        title = f"{config.scheme}, width {config.width}, on {config.batch_size} x {config.seq_len} random tokens"
        return title, {0: linear_ranges(out, casts_or_fp8(config))}, expected
    if options or args.preset:
        extra = ", ".join(map(option_name, options or ["preset"]))
        raise ValueError(f"{run_dir}: a run has its own options; leave out {extra}")
    config = load_config(run_dir)
    title = f"{config.scheme}, width {config.width}, {run_dir}"
    if logged := read_scales(run_dir):
        return title, logged, {}
    config, params, step = load_model(run_dir)
    c, T = config, config.seq_len
    corpus = load_corpus(c.corpus, text=c.text, valid=c.valid, vocab_size=c.vocab_size, seq_len=T)
    # the batch that it would train on next
    tokens, targets = batch(corpus.train, seq_len=T, batch_size=config.batch_size, seed=config.seed, step=step)
    out = kept_loss(params, tokens, targets, config, choose_device(args.device))
    return title, {step: linear_ranges(out, casts_or_fp8(config))}, {}


# ---- The table ----
def _power(x: float) -> str:
    return f"2^{round(log2(x), 1) + 0:.1f}" if 0 < x < inf else f"{x:g}"  # + 0 makes 0 of -0


OCTAVES = range(-24, 17)  # the columns of a line


def table(ranges: Ranges, expected: dict[str, float] | None = None) -> str:
    """A line per tensor: its Range in figures, and drawn on an axis of powers of two."""
    titles = "".join(f"{title:>9}" for title in ("RMS", "expected" if expected else "", "absmax"))
    ticks = "".join(f"{f'2^{octave}':8}" for octave in OCTAVES[::8])
    lines = [f"{'tensor':16}{'format':>6}{titles}  underflow  saturated {ticks}".rstrip()]
    for name, r in ranges.items():
        powers = _power(r.rms), _power(expected[name]) if expected else "", _power(r.absmax)
        shares = f"{_share(r.underflow):>11}{_share(r.saturated):>11}"
        lines.append(f"{name:16}{r.format:>6}" + "".join(f"{x:>9}" for x in powers) + f"{shares} {_line(r)}".rstrip())
    return "\n".join(lines)


def _share(x: float) -> str:
    """A share in percent; 0.00 % and 100.00 % are none and all."""
    if 0 < x < 5e-5:
        return "<0.01 %"
    return ">99.99 %" if 1 - 5e-5 < x < 1 else f"{100 * x:.2f} %"


def verdict(ranges: Ranges) -> str:
    """A line: how many RMS lie between the least and the largest number of their format, and what lies where else."""
    inside, outside = 0, Counter[str]()
    for name, r in ranges.items():
        least, most = (FORMATS[r.format].min_subnormal, FORMATS[r.format].max) if r.format in FORMATS else (0.0, inf)
        if least <= r.rms <= most:
            inside += 1
        else:
            outside[f"{'below' if r.rms < least else 'above'} it {name.rpartition('.')[2]} of"] += 1
    others = "".join(f"; {where} {count} linear{'s' * (count > 1)}" for where, count in outside.items())
    return f"{inside} of {len(ranges)} RMS lie in the range of their format{others}"


def note(ranges: Ranges) -> str:
    """Reason why so much of the head's dy is flushed, on two lines, where that is so and harmless; else nothing.

    dy is p - onehot times a factor. Once the model is sure that most of the vocabulary does not come next, p is tiny
    there, and the elements that carry the RMS are few. An element is flushed below half the least subnormal number,
    so this bounds what their squares add up to.
    """
    r = ranges.get("head.dy")
    if r is None or r.format not in FORMATS or r.underflow < 0.1 or not r.rms:
        return ""
    lost = r.underflow * (FORMATS[r.format].min_subnormal / 2 / r.rms) ** 2
    if not lost < 1e-3:
        return ""
    return (
        f"\nhead.dy: {r.underflow:.0%} is flushed, but at most {lost:.1g} of the sum of its squares. It is\n"
        "p - onehot times a factor, and p is next to nothing for all tokens that the model knows not to come next."
    )


def _line(r: Range) -> str:
    def column(x: float) -> int:
        octave = round(log2(x)) if 0 < x < inf else OCTAVES[-1 if x else 0]
        return OCTAVES.index(min(max(octave, OCTAVES[0]), OCTAVES[-1]))

    line = [" "] * len(OCTAVES)
    line[column(r.rms) : column(r.absmax)] = "-" * (column(r.absmax) - column(r.rms))
    if r.format in FORMATS:
        for mark, limit in zip("[:]", limits(FORMATS[r.format]).values(), strict=True):
            line[column(limit)] = mark
    line[column(r.absmax)] = "x"
    line[column(r.rms)] = "o"
    return "".join(line)


# ---- The picture ----
# a linear's marker and colour
COLOURS = (pic.BLACK, pic.ORANGE, pic.SKY, pic.GREEN, pic.YELLOW, pic.BLUE, pic.VERMILION, pic.PURPLE)
LINEAR_STYLES = {
    kind: {"marker": marker, "color": colour, "markeredgecolor": "black", "markeredgewidth": 0.3}
    for kind, marker, colour in zip(LINEARS, "o^vDs<>P", COLOURS, strict=True)
}


def limits(fmt: Format) -> dict[str, float]:
    """Numbers where a format's range begins and ends, by name."""
    return {"min subnormal": fmt.min_subnormal, "min normal": fmt.min_normal, "max": fmt.max}


def draw_limits(ax: Any, *, words: bool) -> None:
    """Draw the limits of FP8's formats into `ax`, whose y is an RMS; `words` names them to the right of it."""
    ax.set_yscale("log", base=2)
    for fmt, colour in zip(FORMATS.values(), ("black", "dimgray"), strict=True):
        for (name, limit), line in zip(limits(fmt).items(), (":", "--", "-"), strict=True):
            ax.axhline(limit, color=colour, linestyle=line, linewidth=1, zorder=0.9)
            if words:
                ax.text(1.01, limit, f"{fmt.name} {name}", transform=ax.get_yaxis_transform(), color=colour,
                        fontsize=7, va="center")  # fmt: skip


def draw_along(ax: Any, rms: dict[int, dict[str, float | None]], tensor: str, *, words: bool) -> None:
    """Draw the RMS of one tensor, x, w or dy, of every linear against the step; None leaves a hole."""
    for name in next(iter(rms.values())):
        *_, linear, kind = name.split(".")
        if kind == tensor:
            along = [tensors[name] or nan for tensors in rms.values()]
            ax.plot(list(rms), along, markersize=4, linewidth=1.2, **LINEAR_STYLES[linear])
    draw_limits(ax, words=words)


def plot(path: Path, rms: dict[int, dict[str, float]], title: str) -> None:
    """Draw `rms`, by step and tensor, at the first and the last step (Fig. 3) and, if they are two, along all (Fig. 8).

    The tensors are those of `linear_ranges`. Raises ValueError without matplotlib, OSError where `path` cannot be
    written.
    """
    steps = sorted({min(rms), max(rms)})
    panels: list[list[int | str]] = [[step for step in steps for _ in range(6 // len(steps))]]
    if len(steps) > 1:
        panels.append([tensor for tensor in TENSORS for _ in range(2)])
    figure = pic.new_figure(11, 4.5 * len(panels))
    axes = figure.subplot_mosaic(panels, sharey=True)
    for step in steps:
        for name, value in rms[step].items():
            *_, linear, tensor = name.split(".")
            place = TENSORS.index(tensor) + (LINEARS.index(linear) - 3.5) / 10
            axes[step].plot(place, value, **LINEAR_STYLES[linear])
        draw_limits(axes[step], words=step == steps[-1])
        axes[step].set(title=f"step {step}", xticks=range(len(TENSORS)), xticklabels=TENSORS)
    for tensor in TENSORS if len(steps) > 1 else ():
        draw_along(axes[tensor], dict(rms), tensor, words=False)  # type: ignore[arg-type]
        axes[tensor].set(title=f"{tensor} of every linear", xlabel="step")
    low, high = axes[steps[0]].get_ylim()
    axes[steps[0]].set(ylabel="RMS", ylim=(min(low, 2.0**-20), max(high, 2.0**17)))  # alike in most pictures
    keys = [axes[steps[0]].plot([], [], linestyle="none", **style)[0] for style in LINEAR_STYLES.values()]
    figure.legend(keys, LINEARS, loc="outside right center", title="a marker is a linear,\na layer each")
    figure.suptitle(title)
    pic.save(figure, path)
