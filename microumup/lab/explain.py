"""Every number that a scheme gives each weight, branch and op of a model: the answer to "my model does not learn".

All of it follows from the options; nothing is trained, nor even initialized. The network sees of a weight only W = A w.
A step of Adam moves w by about η C, so W by A η C. In `sp` A is 1, and the learning rate that moves W as far is this
A η C: the column SP_lr. (The branches' a and b and the ops' factors lie outside of W, and have lines of their own.)
"""

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from microumup import cli
from microumup.config import PRESETS, TrainConfig
from microumup.interop import doctor
from microumup.lab.tables import text_table
from microumup.multipliers import attention_sigma, gated_silu_sigma
from microumup.optim import DECAYS
from microumup.plan import Plan, gradient_constants, plan


class Parameter(NamedTuple):
    """One weight: its cells of Tables 1-3, its factors of Table 4, and what an update at the schedule's peak does."""

    name: str
    type: str  # input, hidden or output
    shape: tuple[int, int]  # as stored
    fan_in: int
    fan_out: int
    init_std: float  # √B
    A: float
    A_backward: float | None  # factor of dx; the embedding has none, its input is tokens
    dw: float  # factor of the weight's gradient
    C: float
    lr: float  # η C; η for SGD, which does not use C
    decay: float  # share of w that the update takes away
    gradient_constant: float  # c_W, the gradient over the true one of the mean loss (App. A.4)
    sp_lr: float  # A η C; A² η for SGD: the gradient of w is A times that of W, and W moves A times as far as w


class Branch(NamedTuple):
    """One residual branch, R' = a f(R) + b R."""

    name: str
    a: float
    b: float
    tau: float  # a²/b² (eq. 8)
    dbranch: float  # factor of dy where it enters the branch
    dbase: float  # factor of the branch's gradient where it leaves it
    share: float  # of the variance of the final residual at initialization, as `_shares` models it


class Ops(NamedTuple):
    """Factors of the ops that have no weight; RMSNorm and RoPE have none (Table 4)."""

    attention_score_scale: float  # of q kᵀ, with α_attn-softmax in it
    attention: float  # 1/σ: of the output, and of dq, dk and dv
    gated_silu: float  # 1/σ: of the output and of both gradients
    cross_entropy_dlogits: float  # of p - onehot


class Totals(NamedTuple):
    """Sizes and costs of the whole model. A multiply-add of a matmul is 2 FLOPs, everything else 0."""

    parameters: int
    parameters_in_layers: int  # without the embedding and the head
    flops_per_token: int  # forward; T/2 keys a query in causal attention (ops.py computes all T, and masks)
    training_flops_per_token: int  # three times as many
    tokens_per_step: int
    tokens: int
    memory_bytes: int  # of float32 weights and the optimizer's state: w, m and v, or for SGD w alone


class Ledger(NamedTuple):
    """Numbers of a model before it is trained, in the order of the model."""

    parameters: list[Parameter]
    branches: list[Branch]
    ops: Ops
    totals: Totals
    plan: Plan


def explain(config: TrainConfig) -> Ledger:
    """The ledger of `config`: every weight by its name in the model, the branches as layer0.attn, layer0.ffn, …"""
    c, p = config, plan(config, config.batch_size * config.seq_len)
    constants, adam = gradient_constants(p), c.optimizer == "adamw"
    parameters = []
    for name, w in p.weights.items():
        is_input, C = w.type == "input", w.C if adam else 1.0
        scale = p.embedding if is_input else p.linears[name].scale
        fan_in, fan_out = w.shape if is_input else w.shape[::-1]
        parameters.append(Parameter(
            name, w.type, w.shape, fan_in, fan_out, w.init_std, scale.y, None if is_input else scale.dx, scale.dw, w.C,
            lr=c.eta * C, decay=DECAYS[c.decay](c.weight_decay, 1.0, c.eta, C), gradient_constant=constants[name],
            sp_lr=(scale.y if adam else scale.y**2) * c.eta * C,
        ))  # fmt: skip
    dlogits = p.loss.dx * c.alpha_loss_softmax / p.batch_tokens
    rows = [
        Branch(f"layer{i // 2}.{('attn', 'ffn')[i % 2]}", r.a, r.b, r.a**2 / r.b**2, r.dbranch, r.dbase, share)
        for i, (r, share) in enumerate(zip(p.branches, _shares(p), strict=True))
    ]
    sizes = [row.fan_in * row.fan_out for row in parameters]  # the embedding's first, the head's last
    flops = 2 * sum(sizes[1:]) + c.layers * 2 * c.seq_len * c.width  # q kᵀ and p v: each 2 D a key, T/2 keys
    tokens, memory = c.steps * p.batch_tokens, 4 * sum(sizes) * (3 if adam else 1)
    totals = Totals(sum(sizes), sum(sizes[1:-1]), flops, 3 * flops, p.batch_tokens, tokens, memory)
    return Ledger(parameters, rows, Ops(p.score_scale, p.attention.y, p.gated_silu.y, dlogits), totals, p)


def _shares(p: Plan) -> list[float]:
    """Share of every branch in the variance of the final residual at initialization; the embedding has the rest.

    The variance of f is that of its linears times App. B's models of attention and gated_silu, for tokens with nothing
    in common. Under Unit Scaling it is 1 by construction, and the shares are r_l²/Σ r_i² of eq. (12).
    """
    c, rows = p.config, (p.weights[f"layer0.{kind}"] for kind in ("q", "k", "v", "o", "gate", "up", "down"))
    q, k, v, o, gate, up, down = ((w.A * w.init_std) ** 2 * w.shape[1] for w in rows)
    # the models are for unit-scale q, k and gate: what these have beyond it acts like α
    alpha = p.score_scale * c.head_dim * (q * k) ** 0.5
    attention = (p.attention.y * attention_sigma(alpha, c.head_dim, c.seq_len)) ** 2 * v * o
    ffn = (p.gated_silu.y * gated_silu_sigma(c.alpha_ffn_act * gate**0.5)) ** 2 * gate * up * down
    parts = [(p.weights["embedding"].A * p.weights["embedding"].init_std) ** 2]
    parts += [(attention, ffn)[i % 2] * r.a**2 for i, r in enumerate(p.branches)]
    # the b of all behind a branch keep so much of what it adds
    parts = [part * prod(r.b**2 for r in reversed(p.branches[i:])) for i, part in enumerate(parts)]
    return [part / sum(parts) for part in parts[1:]]


def hints(config: TrainConfig, ledger: Ledger) -> list[str]:
    """Suspicions by the numbers alone, a line each; mostly none."""
    c, t, typical, adam = config, ledger.totals, config.rules.typical_lr, config.optimizer == "adamw"
    times, side = max((c.eta / typical, "above"), (typical / c.eta, "below"))
    rising, decay = round(c.warmup * c.steps), max(p.decay for p in ledger.parameters)
    possible = (
        (adam and times > 8, f"--lr {c.eta:.3g} is {times:.3g} times {side} {typical:.3g}, the default of {c.scheme}"),
        (adam and rising < 10, f"--warmup: {rising} updates, and Adam's m averages over 10; longer, or more --steps"),
        (decay > 0.01, f"--weight-decay: a step takes {decay:.3g} of a weight; other libraries' λ is --decay coupled"),
        (t.tokens < t.parameters, f"--steps: {t.tokens / t.parameters:.2g} tokens per parameter are few; more steps"),
    )
    return [line for warranted, line in possible if warranted]


def _short(x: object) -> str:
    """A cell of at most 7 characters: 0.0469, 1.22e-4; a shape as 256x64."""
    if isinstance(x, float):
        text = f"{x:.3g}" if x == 0 or 1e-3 <= x < 1000 else f"{x:.0f}" if 1000 <= x < 1e7 else f"{x:.2e}"
        return text.replace("e-0", "e-").replace("e+", "e").replace("e0", "e")
    return "x".join(map(str, x)) if isinstance(x, tuple) else "-" if x is None else str(x)


def _folded(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows that differ in nothing but their name as one: layer0.q, layer0.k, layer1.q, layer1.k as layer0-1.q,k."""
    groups: dict[tuple[Any, ...], list[tuple[str, str, str]]] = {}
    for name, *rest in rows:
        groups.setdefault(tuple(rest), []).append(name.partition("."))
    lines = []
    for numbers, names in groups.items():
        layers, _, kinds = (list(dict.fromkeys(part)) for part in zip(*names, strict=True))
        last = f"-{layers[-1].removeprefix('layer')}" if len(layers) > 1 else ""
        lines.append((f"{layers[0]}{last}.{','.join(kinds)}".removesuffix("."), *numbers))
    return lines


def _table(titles: str, rows: Iterable[tuple[Any, ...]]) -> str:
    """Aligned columns, words to the left and numbers to the right."""
    lines = [titles.split(), *(list(map(_short, row)) for row in _folded(rows))]
    align = "".join("<" if title in ("parameter", "type", "branch") else ">" for title in lines[0])
    text = text_table(lines, align)
    return text if max(map(len, text.splitlines())) <= 120 else text_table(lines, align, gap=" ")


def report(config: TrainConfig, ledger: Ledger) -> str:
    """The ledger for a reader: two tables with a legend each, ops, totals, and hints where there are any."""
    c, ops, t = config, ledger.ops, ledger.totals
    return f"""{c.scheme}, {c.layers} layers of width {c.width} (F {c.ffn_dim}, K {c.head_dim}), V {c.vocab_size}; \
{c.optimizer}, η {_short(c.eta)}, {c.steps} steps of {c.batch_size} x {c.seq_len} tokens

{_table("parameter type shape fan_in fan_out √B A A_back dw C lr decay c_W SP_lr", ledger.parameters)}

W = A w,  w(0) ~ N(0, B),  w(t+1) = w(t) - η C Φ(gradients): Tables 1-3, C with the residual column's part
A_back, dw   factors of dx and of the weight's gradient (Table 4); A_back is not A where App. A.4 lets it differ
lr, decay    at the peak of the schedule: η C (η for SGD), and the share of w that weight decay takes in an update
c_W          the gradient over that of the mean loss (App. A.4); Adam does not see it but through its ε
SP_lr        A η C (A² η for SGD): what W learns at. In `sp`, where A is 1, this weight would need that learning rate

{_table("branch a b τ dbranch dbase share", ledger.branches)}

R' = a f(R) + b R,  τ = a²/b² (eq. 8).  dbranch, dbase: factors of the gradient where it enters f and leaves it
share: of the final residual's variance at init, by App. B's models, for unrelated tokens; the embedding has the rest

attention      scores {_short(ops.attention_score_scale)} q kᵀ; output, dq, dk, dv times 1/σ = {_short(ops.attention)}
gated_silu     output and both gradients times 1/σ = {_short(ops.gated_silu)}
cross_entropy  dlogits = {_short(ops.cross_entropy_dlogits)} (p - onehot)

parameters     {t.parameters:,}; {t.parameters_in_layers:,} without embedding and head
tokens         {t.tokens_per_step:,} a step, {t.tokens:,} in all, {t.tokens / t.parameters:.3g} a parameter
FLOPs a token  {t.flops_per_token:,} forward, 3 times that in training; 2 a multiply-add, causal attention at T/2 keys
memory         {t.memory_bytes / 1e6:,.1f} MB of float32 weights and optimizer state; gradients, activations on top
""" + "".join(f"\nhint: {line}" for line in hints(c, ledger))


def main(argv: list[str] | None = None) -> int:
    """The command `explain`: 0, but 1 when groups held --against it differ, and 2 on a bad argument."""
    parser = cli.Parser("explain", __doc__ or "", examples=(
        "  microumup explain --scheme mup --base-width 64         of another scheme\n"
        "  microumup explain --layers 4 --against groups.json     is your optimizer set up so?"))  # fmt: skip
    cli.add_options(parser, TrainConfig)
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="sizes, as of train (default: tiny)")
    parser.add_argument("--against", type=Path, metavar="FILE", help="hold the parameter groups in a JSON file against "
                        "the plan: which rules they break (its format: docs/porting.md)")  # fmt: skip
    cli.shared(parser, "quiet", json="the ledger with every parameter, or what --against found")
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        config = TrainConfig(**PRESETS[args.preset] | cli.given(args, TrainConfig))
        groups = doctor.read_groups(args.against) if args.against else None
    if groups:
        symptoms = doctor.examine(config, groups)
        cli.say(args.quiet)(doctor.report(config, groups, symptoms))
        cli.json_line(args, {"passed": not symptoms, "symptoms": symptoms})
        return 1 if symptoms else 0
    ledger = explain(config)
    cli.say(args.quiet)(report(config, ledger).rstrip())
    cli.json_line(args, ledger)
    return 0
