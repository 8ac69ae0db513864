"""Mistakes that are easily made with u-µP, each of them data: what to put where, and which check of the zoo sees it.

A mistake is planted in umup, without touching a file: other cells in its row, other factors of an op, another backward
in a pair, another reading of weight decay, another op in the model. `planted` puts it there for a while.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from microumup import fused, model, ops, trainer
from microumup.backend import Array
from microumup.engine import Backward, Kernels, Tensor, using
from microumup.lab import coordcheck, gradcheck, scales
from microumup.lab.figures.rules import taus_as_printed
from microumup.multipliers import Plain, UnitScaled, residual_multipliers
from microumup.ops import ResidualScale, Scale
from microumup.optim import DECAYS, AdamW
from microumup.parametrization import SCHEMES, Rule, one

Swap = tuple[dict[str, Any], str, Any]  # a table, or a module's names; one of its keys; what is put there


class Mistake(NamedTuple):
    """Words for what is done, what should be and where that stands, how to plant it, and which checks catch it."""

    what: str
    rule: str
    swaps: Sequence[Swap]
    caught_by: str = ""
    seen_by: str = ""  # where none of the checks sees it: what does
    kernels: Kernels = {}  # noqa: RUF012 - nobody writes to it


@contextmanager
def planted(mistake: Mistake) -> Iterator[None]:
    """Within it, models of the scheme umup and their optimizers have the mistake."""
    with ExitStack() as stack:
        for place, key, value in mistake.swaps:
            stack.enter_context(patch.dict(place, {key: value}))
        stack.enter_context(patch.dict(fused.KERNELS, mistake.kernels))  # those that training puts in their place
        stack.enter_context(using(mistake.kernels))
        yield


# ---- What they are made of ----
UMUP = SCHEMES["umup"]


def row(**cells: Any) -> list[Swap]:
    """Other cells in umup's row."""
    return [(SCHEMES, "umup", UMUP._replace(**cells))]


def factors(op: str, rule: Callable[..., Scale | ResidualScale]) -> list[Swap]:
    """Another rule for the factors of an op."""
    return row(factors=type("Planted", (UnitScaled,), {op: staticmethod(rule)}))


def pair(op: str, backward: Backward) -> dict[str, Any]:
    """Another backward for an op."""
    kernels = {getattr(ops, op): (getattr(ops, f"{op}_forward"), backward)}
    return {"swaps": [(vars(ops), f"{op}_backward", backward)], "kernels": kernels}


def fans_swapped(*rules: str) -> list[Swap]:
    """These rules of every weight's cell, of a shape whose fan_in is taken for its fan_out."""

    def swapped(rule: Rule) -> Rule:
        return lambda s: rule(s._replace(fan_in=s.fan_out, fan_out=s.fan_in))

    cells = {type: getattr(UMUP, type) for type in ("input", "hidden", "output")}
    for type, cell in cells.items():
        given = {name: rule for name in rules if (rule := getattr(cell, name))}
        cells[type] = cell._replace(**{name: swapped(rule) for name, rule in given.items()})
    return row(**cells)


def eq_22_as_printed(L: int, base_L: int, alpha_res: float, ratio: float) -> list[tuple[float, float]]:
    """(a, b) of every branch, from a τ without squares and with L^-1/2 outside."""
    return residual_multipliers(taus_as_printed(L, alpha_res, ratio))


class Tied(Tensor):
    """The embedding at its second place, the readout: it hands on the gradient that it gets there."""

    __slots__ = ("embedding", "head")

    def __init__(self, embedding: Tensor, head: Tensor) -> None:
        super().__init__(embedding.data, "head")
        self.embedding, self.head = embedding, head

    def accumulate(self, grad: Array) -> None:
        super().accumulate(grad)
        self.embedding.accumulate(grad)
        self.head.accumulate(0 * grad)  # it is no weight of the model any more


def tied(function: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, `loss` or `evaluate` with the embedding in place of the head."""

    def planted(params: Any, *args: Any, **options: Any) -> Any:
        embedding, head = params["embedding"], params["head"]
        head = Tied(embedding, head) if isinstance(head, Tensor) else embedding
        return function({**params, "head": head}, *args, **options)

    return planted


class CoarseAdamW(AdamW):
    """AdamW with an ε of 1, whatever was asked for: 2^-12 and less to gradients of the size that µP's have."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings | {"eps": 1.0})


attention, rope_backward = ops.attention, ops.rope_backward  # before anything is planted


def attention_of_its_length(q: Tensor, k: Any, v: Any, *, head_dim: int, score_scale: float, scale: Scale) -> Tensor:
    """ops.attention with the factor of as many keys as there are."""
    keys = (k.data if isinstance(k, Tensor) else k).shape[1]
    scale = UnitScaled.attention(score_scale * head_dim, head_dim, keys)
    return attention(q, k, v, head_dim=head_dim, score_scale=score_scale, scale=scale)


attention_of_its_length.__name__ = "attention"  # the pair it runs is attention's
embedding, hidden, readout, residual = UMUP.input, UMUP.hidden, UMUP.output, UMUP.residual

# ---- The zoo ----
ZOO = {
    "nothing": Mistake("umup as it is", "", []),
    "hidden-lr-inverse": Mistake(
        "hidden LR 1/fan_in", "fan_in^-1/2: Table 1", row(hidden=hidden._replace(C=lambda s: 1 / s.fan_in)),
        "coord transfer"),
    "hidden-lr-1": Mistake(
        "hidden LR 1", "fan_in^-1/2: Table 1", row(hidden=hidden._replace(C=one)), "coord late transfer"),
    "embedding-lr-1": Mistake(
        "embedding LR 1", "fan_out^-1/2: App. A.3", row(input=embedding._replace(C=one)), "coord"),
    "branch-lr-1": Mistake(
        "no L^-1/2 in the LR of branches", "L^-1/2: Table 1", row(residual=residual._replace(C=one)),
        "coord transfer"),
    "fans-swapped": Mistake(
        "fan_in taken for fan_out", "Table 1", fans_swapped("init_std", "A", "A_backward", "C"),
        "scale coord late transfer"),
    "fans-swapped-lr": Mistake("the same, in the LR alone", "Table 1", fans_swapped("C"), "coord"),
    "attention-sqrt": Mistake(
        "scores of 1/√K", "1/K: eq. (25)", row(score_scale=lambda K: K**-0.5), "scale coord transfer"),
    "readout-1": Mistake(
        "no readout multiplier", "1/fan_in: Table 1", row(output=readout._replace(A=one, A_backward=one)),
        "scale coord transfer"),
    "readout-sqrt": Mistake(
        "readout multiplier fan_in^-1/2", "1/fan_in: Table 1", row(output=readout._replace(A=hidden.A)),
        "scale coord"),
    "tied-embeddings": Mistake(
        "embedding as the head, with its LR", "two types: Table 1",
        [(vars(module), "loss", tied(model.loss)) for module in (gradcheck, model, trainer)]
        + [(vars(scales), "forward", tied(model.forward)), (vars(trainer), "evaluate", tied(model.evaluate))],
        "gradcheck coord transfer"),
    "coupled-decay": Mistake(
        "weight decay s(t) η C λ", "s(t) λ: Table 6", [(DECAYS, "independent", DECAYS["coupled"])], "late"),
    "adam-eps-1": Mistake(
        "Adam's ε as large as its gradients", "small against them, 1: App. A.4",
        [(vars(module), "AdamW", CoarseAdamW) for module in (coordcheck, trainer)], "coord late"),
    "eq-22-printed": Mistake(
        "τ as eq. (22) prints it", "eq. (12)", row(residual=residual._replace(multipliers=eq_22_as_printed)), "",
        "σ of all branches over that of the embedding, which is α_res no more; and Lemma C.1, which fails"),
    "residual-twice": Mistake(
        "a twice, forward and backward", "once: eq. (17)",
        factors("residual", lambda a, b: UnitScaled.residual(a * a, b)), "scale coord"),
    "residual-undelayed": Mistake(
        "a on the dy of the branch", "at its base: App. B", factors("residual", Plain.residual), "scale"),
    "residual-both-ends": Mistake(
        "a on its dy and at its base", "at its base: App. B",
        factors("residual", lambda a, b: ResidualScale(a, b, dbranch=a, dbase=a)), "gradcheck scale"),
    "residual-no-end": Mistake(
        "a nowhere in backward", "at its base: App. B",
        factors("residual", lambda a, b: ResidualScale(a, b, dbranch=1.0, dbase=1.0)),
        "gradcheck scale coord transfer"),
    "silu-1": Mistake(
        "gated_silu without its factor", "1/σ: Table 4", factors("gated_silu", Plain.gated_silu), "scale"),
    "silu-forward": Mistake(
        "gated_silu's factor forward alone", "1/σ in both: Table 4",
        factors("gated_silu", lambda alpha: UnitScaled.gated_silu(alpha)._replace(dx=1.0)), "gradcheck scale"),
    "rope-sign": Mistake(
        "RoPE's backward turns on", "back: the transpose",
        caught_by="gradcheck transfer", **pair("rope", lambda dy, turn: rope_backward(dy, turn.conj()))),
    "rms-norm-term": Mistake(
        "RMSNorm's backward: r a constant", "r depends on x", caught_by="gradcheck transfer",
        **pair("rms_norm", lambda dy, saved: (dy * saved[1],))),
    "input-length": Mistake(
        "attention's σ of the input's length", "the training length: App. B",
        [(vars(ops), "attention", attention_of_its_length)],
        seen_by="the logits of a text, which are others in a longer one"),
    "mean-loss": Mistake(
        "1/b in the loss's gradient", "none: Table 4",
        factors("cross_entropy", lambda alpha, V, b: UnitScaled.cross_entropy(alpha, V, 1)), "scale"),
}  # fmt: skip
