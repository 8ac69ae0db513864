"""Tables 1-3 as one table: what each scheme makes of a weight, by the weight's type.

    W = A w,   w(0) ~ N(0, B),   w(t+1) = w(t) - η C Φ(gradients)         (abc-parametrization, section 2.1)

A is the constant that a stored weight w is multiplied by wherever the network uses it, √B the standard deviation that
it is drawn with, C its own factor on the learning rate. All that a scheme decides about a weight are these three.

                      input            output                   hidden                    residual
    sp           √B   1                fan_in^-1/2              fan_in^-1/2               -
                 A    1                1                        1                         1
                 C    1                1                        1                         1
    mup          √B   σ_init           σ_init base^-1/2         σ_init fan_in^-1/2        -
    (Table 1)    A    α_emb            base/fan_in              1                         √(base_L/L)
                 C    1                1                        base/fan_in               √(base_L/L)
    mup-table2   √B   1                1                        1                         -
                 A    σ_init α_emb     σ_init base^1/2/fan_in   σ_init fan_in^-1/2        √(base_L/L)
                 C    1/σ_init         base^1/2/σ_init          base fan_in^-1/2/σ_init   √(base_L/L)
    mup-table3   √B   1                1                        1                         -
                 A    α_emb            1/fan_in                 fan_in^-1/2               L^-1/2
                 C    1                1                        fan_in^-1/2               L^-1/2
    umup         √B   1                1                        1                         -
    (Table 1)    A    1                1/fan_in †               fan_in^-1/2               τ of eq. (12)
                 C    fan_out^-1/2     1                        fan_in^-1/2               L^-1/2
    umup-iclr    √B   1                1                        1                         -
                 A    1                1/fan_in ‡               fan_in^-1/2               τ, with α_res √2
                 C    fan_out^-1/2     1                        fan_in^-1/2               (L/2)^-1/2

    † fan_in^-1/2, ‡ fan_out^-1/2 in the backward pass (App. A.4).   base = the fan_in it has at the base width.
    L = the number of residual branches, two a layer. C of the residual column multiplies that of the weights in
    branches. η̂_emb multiplies C of the embedding in every scheme.

`mup` has σ_init relative to the base model's fan_in^-1/2, where Table 1 prints it as absolute: so `mup` at its base
shape is `sp`. `mup-table2` is `mup` after the abc-symmetry: moving a factor θ from the init to the multiplier, that is
A θ, √B/θ and C/θ, changes no step of Adam; here θ is each weight's √B. (Table 2 has σ_init absolute again.)
`mup-table3` drops the base shapes: other constants in C, in the readout's A and in the residual's multiplier.
`umup-iclr` is the paper's later, published version, which other implementations follow.
"""

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

from microumup.multipliers import Plain, UnitScaled, residual_multipliers, residual_taus


class Shape(NamedTuple):
    """Everything that a rule may depend on. Depths count residual branches; the σ and α's are hyperparameters."""

    fan_in: int
    fan_out: int
    base_fan_in: float
    depth: int
    base_depth: int
    in_branch: bool = False
    sigma_init: float = 1.0
    alpha_emb: float = 1.0
    eta_emb: float = 1.0


Rule = Callable[[Shape], float]


class Cell(NamedTuple):
    """A scheme's rules for one type of weight."""

    init_std: Rule  # √B
    A: Rule
    C: Rule
    A_backward: Rule | None = None  # where it differs from A (†)


class Residual(NamedTuple):
    """The last column: (a, b) of every branch from (depth, base depth, α_res, α_res-attn-ratio), and its part of C."""

    multipliers: Callable[[int, int, float, float], list[tuple[float, float]]]
    C: Rule


class Scheme(NamedTuple):
    """A row of the table."""

    input: Cell
    output: Cell
    hidden: Cell
    residual: Residual
    score_scale: Callable[[int], float]  # of the head dim; α_attn-softmax multiplies it
    factors: type[Plain]  # of every op: true gradients, or Table 4
    typical_lr: float  # a good η for AdamW at small scale; what `--lr` is when nobody says
    hyperparameters: tuple[str, ...]  # those that mean something in this scheme, beside η and η̂_emb


def one(shape: Shape) -> float:
    """The rule 1."""
    return 1.0


SOFTMAXES = ("alpha_attn_softmax", "alpha_loss_softmax")
MUP_HYPERPARAMETERS = ("sigma_init", "alpha_emb", *SOFTMAXES, "base_width", "base_layers")
UMUP_HYPERPARAMETERS = ("alpha_res", "alpha_res_attn_ratio", "alpha_ffn_act", *SOFTMAXES, "embedding_lr_rule")

SP = Scheme(
    input=Cell(init_std=one, A=one, C=one),
    output=Cell(init_std=lambda s: s.fan_in**-0.5, A=one, C=one),
    hidden=Cell(init_std=lambda s: s.fan_in**-0.5, A=one, C=one),
    residual=Residual(lambda L, base_L, res, ratio: [(1.0, 1.0)] * L, C=one),
    score_scale=lambda K: K**-0.5, factors=Plain, typical_lr=2**-7, hyperparameters=(),
)  # fmt: skip
MUP = Scheme(
    input=Cell(init_std=lambda s: s.sigma_init, A=lambda s: s.alpha_emb, C=one),
    output=Cell(init_std=lambda s: s.sigma_init * s.base_fan_in**-0.5, A=lambda s: s.base_fan_in / s.fan_in, C=one),
    hidden=Cell(init_std=lambda s: s.sigma_init * s.fan_in**-0.5, A=one, C=lambda s: s.base_fan_in / s.fan_in),
    residual=Residual(lambda L, base, *_: [(sqrt(base / L), 1.0)] * L, C=lambda s: sqrt(s.base_depth / s.depth)),
    score_scale=lambda K: 1 / K, factors=Plain, typical_lr=2**-7.5, hyperparameters=MUP_HYPERPARAMETERS,
)  # fmt: skip
MUP_TABLE2 = MUP._replace(
    input=Cell(init_std=one, A=lambda s: s.sigma_init * s.alpha_emb, C=lambda s: 1 / s.sigma_init),
    output=Cell(init_std=one, A=lambda s: s.sigma_init * s.base_fan_in**0.5 / s.fan_in,
                C=lambda s: s.base_fan_in**0.5 / s.sigma_init),
    hidden=Cell(init_std=one, A=lambda s: s.sigma_init * s.fan_in**-0.5,
                C=lambda s: s.base_fan_in * s.fan_in**-0.5 / s.sigma_init),
)  # fmt: skip
MUP_TABLE3 = MUP._replace(
    input=Cell(init_std=one, A=lambda s: s.alpha_emb, C=one),
    output=Cell(init_std=one, A=lambda s: 1 / s.fan_in, C=one),
    hidden=Cell(init_std=one, A=lambda s: s.fan_in**-0.5, C=lambda s: s.fan_in**-0.5),
    residual=Residual(lambda L, base_L, res, ratio: [(L**-0.5, 1.0)] * L, C=lambda s: s.depth**-0.5),
    typical_lr=1.5, hyperparameters=("alpha_emb", "alpha_attn_softmax", "alpha_loss_softmax"),
)  # fmt: skip
UMUP = Scheme(
    input=Cell(init_std=one, A=one, C=lambda s: s.fan_out**-0.5),
    output=Cell(init_std=one, A=lambda s: 1 / s.fan_in, C=one, A_backward=lambda s: s.fan_in**-0.5),
    hidden=Cell(init_std=one, A=lambda s: s.fan_in**-0.5, C=lambda s: s.fan_in**-0.5),
    residual=Residual(
        lambda L, base_L, res, ratio: residual_multipliers(residual_taus(L, res, ratio)), C=lambda s: s.depth**-0.5
    ),
    score_scale=lambda K: 1 / K, factors=UnitScaled, typical_lr=1.5, hyperparameters=UMUP_HYPERPARAMETERS,
)  # fmt: skip
UMUP_ICLR = UMUP._replace(
    output=Cell(init_std=one, A=lambda s: 1 / s.fan_in, C=one, A_backward=lambda s: s.fan_out**-0.5),
    residual=Residual(
        lambda L, base_L, res, ratio: residual_multipliers(residual_taus(L, sqrt(2) * res, ratio)),
        C=lambda s: (s.depth / 2) ** -0.5,
    ),
)

SCHEMES: dict[str, Scheme] = {
    "sp": SP, "mup": MUP, "mup-table2": MUP_TABLE2, "mup-table3": MUP_TABLE3, "umup": UMUP, "umup-iclr": UMUP_ICLR,
}  # fmt: skip


def without_embedding_lr_rule(scheme: Scheme) -> Scheme:
    """The ablation of Figs. 2, 4 and 5: the input weight's C set back to 1."""
    return scheme._replace(input=scheme.input._replace(C=one))


# The paper's other names for the hyperparameters, and the one this code uses.
ALIASES = {
    "alpha_residual": "alpha_res",
    "alpha_residual_attn_ratio": "alpha_res_attn_ratio",
    "alpha_attn": "alpha_attn_softmax",
    "alpha_output": "alpha_loss_softmax",
}


class Weight(NamedTuple):
    """A scheme's rules worked out for one weight."""

    type: str  # input, hidden or output
    shape: tuple[int, int]  # as stored: (fan_out, fan_in), an embedding (fan_in, fan_out) = (V, D)
    init_std: float
    A: float
    A_backward: float
    C: float  # the learning rate factor, with the residual column's and η̂_emb where they apply


def weight(scheme: Scheme, type: str, shape: Shape) -> Weight:
    """The row `scheme` at column `type`, worked out for a weight of this shape."""
    cell: Cell = getattr(scheme, type)
    A = cell.A(shape)
    C = cell.C(shape) * (scheme.residual.C(shape) if shape.in_branch else 1.0)
    return Weight(
        type=type,
        shape=(shape.fan_in, shape.fan_out) if type == "input" else (shape.fan_out, shape.fan_in),
        init_std=cell.init_std(shape),
        A=A,
        A_backward=cell.A_backward(shape) if cell.A_backward else A,
        C=C * shape.eta_emb if type == "input" else C,
    )
