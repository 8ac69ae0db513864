"""The way from SP to u-µP, one row of the table at a time (App. A): what each step keeps of a half-trained network.

All schemes have the same network. They differ in how the effect of a weight is spread over multiplier, init and
learning rate, and in constants. `move` takes weights and AdamW's state from one row to another. With G for the gain
of a weight w, all the factors that the network has next to it,

    w' = θ w,  θ = G/G'              the network computes what it did
    g' = g/θ · c'_W/c_W              its gradient: the true one times a known constant, `plan.gradient_constants`
    m' = m g'/g,  v' = v (g'/g)²
    C' = θ C                         is what Adam, at ε = 0, needs to stay on its trajectory: the abc-symmetry

and G is not the multiplier A alone, but every constant that can be moved into the weight:

    embedding   A/r_0                in units of r_0 = A √B: RMSNorm takes the trunk's scale out (where its ε is 0)
    q, k        A √score             score is the factor of q kᵀ, a root for each
    v, up       A
    o           A/σ · r_l/r_0        σ of attention; r_l = a_l/Π b_i, i = 1 … l: by Lemma C.1 all that a and b do
    gate        A α
    down        A/(σ α) · r_l/r_0    σ of gated_silu, α = α_ffn-act: α x sigmoid(α x) is a function of α x
    head        A α                  α_loss-softmax

So the map is exact from any row to any other. What it cannot carry over, and `changes` names, is where C of the new
row is not θ C, and where a fresh weight there is not θ times one here. What all C have in common is a matter of η.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from itertools import accumulate
from math import prod, sqrt
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from microumup.backend import Array
from microumup.cli import Parser, bad_input, few, json_line, say, shared
from microumup.config import ModelConfig
from microumup.cpu import Arrays
from microumup.engine import Tensor, backpropagate
from microumup.limits import check_least, option_name
from microumup.model import init_params, loss
from microumup.optim import AdamW, Factors
from microumup.parametrization import SCHEMES
from microumup.plan import Plan, gradient_constants, plan

Moments = dict[str, Arrays]  # by "m" and "v"


def move(params: Arrays, moments: Moments, source: Plan, target: Plan) -> tuple[Arrays, Moments]:
    """Weights and moments of `source` as those of `target`; the number of updates stays what it is.

    `moments` are AdamW's, or none of SGD. Where `changes` finds none Adam stays on its trajectory at ε = 0, with weight
    decay that is independent of C. SGD, which has no C, does with the gradient constants of `target` over θ². Raises
    ValueError where source and target cannot be the same network, or cast to FP8, through which no factor passes
    unchanged.
    """
    for name in ("width", "layers", "head_dim", "vocab_size", "norm_eps", "rope_base"):
        if (old := getattr(source.config, name)) != (new := getattr(target.config, name)):
            raise ValueError(f"move: {option_name(name)} is {old} in source, {new} in target; make them the same")
    if {source.config.fp8, target.config.fp8} != {"none"}:
        raise ValueError("move: a cast to FP8 is not the same at another scale; move with fp8='none', then cast")
    if params.keys() != source.weights.keys():
        raise ValueError("move: params are not those of source; they need the names in source.weights")
    theta = weight_factors(source, target)
    c, moved_c = gradient_constants(source), gradient_constants(target)
    of_g = {name: moved_c[name] / c[name] / theta[name] for name in theta}
    power = {"m": 1, "v": 2}
    moved = {k: {name: a * of_g[name] ** power[k] for name, a in arrays.items()} for k, arrays in moments.items()}
    return {name: w * theta[name] for name, w in params.items()}, moved


def weight_factors(source: Plan, target: Plan) -> Factors:
    """θ of every weight."""
    old, new = gains(source), gains(target)
    return {name: prod(old[name].values()) / prod(new[name].values()) for name in old}


def lr_factors(source: Plan, target: Plan) -> tuple[float, Factors]:
    """η'/η, and the C' that keeps every weight on its trajectory then. At this η' the first layer's v, a hidden weight
    with A alone next to it, stays on it with the C of its row."""
    C = {name: theta * source.weights[name].C for name, theta in weight_factors(source, target).items()}
    lr = C["layer0.v"] / target.weights["layer0.v"].C
    return lr, {name: factor / lr for name, factor in C.items()}


def gains(p: Plan) -> dict[str, Factors]:
    """G of every weight, factor by factor."""
    c, (r_0, *trunk) = p.config, trunk_scales(p)
    found: dict[str, Factors] = {name: {"A": w.A} for name, w in p.weights.items()}
    found["embedding"]["A"] /= r_0
    found["head"]["α_loss-softmax"] = c.alpha_loss_softmax
    root = {"√score": sqrt(p.score_scale)}
    r = [branch.a / scale for branch, scale in zip(p.branches, trunk, strict=True)]  # r_l/r_0
    for layer in range(c.layers):
        of_o = {"1/σ": p.attention.y, "r_l/r_0": r[2 * layer]}
        of_down = {"1/σ": p.gated_silu.y, "r_l/r_0": r[2 * layer + 1], "1/α_ffn-act": 1 / c.alpha_ffn_act}
        beside = {"q": root, "k": root, "o": of_o, "gate": {"α_ffn-act": c.alpha_ffn_act}, "down": of_down}
        for name, factors in beside.items():
            found[f"layer{layer}.{name}"] |= factors
    return found


def trunk_scales(p: Plan) -> list[float]:
    """r_0, the std that a fresh embedding puts out, and what the trunk has left of it after each branch: r_0 Π b."""
    r_0 = p.weights["embedding"].A * p.weights["embedding"].init_std
    return list(accumulate((branch.b for branch in p.branches), mul, initial=r_0))


def changes(source: Plan, target: Plan) -> list[str]:
    """Sentences on what training does not keep, one each; none where `target` goes on as `source` would."""
    before, after, theta = source.weights, target.weights, weight_factors(source, target)
    old, new, (lr, needed) = gains(source), gains(target), lr_factors(source, target)

    def sentence(names: list[str]) -> str:
        C = [after[name].C / needed[name] for name in names]
        std = [after[name].init_std / (theta[name] * before[name].init_std) for name in names]
        what = [f"C is {_span(C)} times the one needed"] * (not _ones(C))
        what += [f"a fresh one is {_span(std)} times as large"] * (not _ones(std))
        why = []
        for factor in list(old[names[0]])[1:]:  # those beside A
            a, b = ([gain[name][factor] for name in names] for gain in (old, new))
            why += [f"{factor} {_span(a)} -> {_span(b)}"] * (not _ones(np.divide(b, a)))
        return ", ".join(what) + f" ({', '.join(why)})" * bool(what and why)

    said = [f"η: {lr:.4g} times it keeps v's learning rate; C of the others is compared at that"] * (not _ones(lr))
    said += [f"{kinds}: {words}" for words, kinds in _by_kind(list(before), sentence).items() if words]
    heads = [p.linears["head"].scale for p in (source, target)]
    if not _ones(ratio := heads[1].dx / heads[1].y / (heads[0].dx / heads[0].y)):
        said.append(f"readout's backward: {ratio:.4g} times on all gradients behind it; Adam sees it through ε alone")
    if source.config.norm_eps and not _ones(trunk := np.divide(trunk_scales(target), trunk_scales(source))):
        said.append(f"RMSNorm's ε: still {source.config.norm_eps:g}, and the trunk is {_span(trunk)} times as large")
    return said


def _by_kind(names: list[str], words: Callable[[list[str]], str]) -> dict[str, str]:
    """Sentences that `words` makes of the q of all layers, of all k, …, and for each the kinds it is said of."""
    found: dict[str, str] = {}
    for kind in dict.fromkeys(name.rpartition(".")[2] for name in names):
        said = words([name for name in names if name.rpartition(".")[2] == kind])
        found[said] = f"{found[said]}, {kind}" if said in found else kind
    return found


def _ones(ratios: Any) -> bool:
    return bool(np.allclose(ratios, 1, rtol=1e-12, atol=0))


def _span(values: Any) -> str:
    return " to ".join(dict.fromkeys(f"{value:.4g}" for value in (min(values), max(values))))


class Link(NamedTuple):
    """A step from one row to the next: whether training goes on as it did, and what the step does."""

    source: str
    target: str
    exact: bool
    does: str


CHAIN = (
    Link("sp", "mup", True, "at mup's base shape, with attention's factor that of sp, α_attn-softmax = √K"),
    Link("mup", "mup-table2", True, "each weight's std goes into its multiplier: w/√B, A √B, C/√B (App. A.1)"),
    Link("mup-table2", "mup-table3", False, "σ_init and base shapes leave C, readout and residual (App. A.2)"),
    Link("mup-table3", "umup", False, "1/√width in the embedding's C (App. A.3), σ in the ops, other backward factors "
         "(App. A.4); a and b are equivalent at α_res = 1/α_emb (Lemma C.1)"),
    Link("umup", "umup-iclr", False, "depth in C counts layers, another readout backward; a and b stay at α_res/√2"),
)  # fmt: skip
SIZES = {"width": 32, "layers": 2, "base_width": 16, "base_layers": 1}
SEQUENCES = 4  # in a batch
SAME = 1e-12  # of losses near 1: rounding comes to 4e-14 in 300 steps, a single C that is 1e-6 off to 1e-9 in 30


def plans(link: Link, sizes: dict[str, int]) -> tuple[Plan, Plan]:
    """Both sides of a link, at hyperparameters that are not 1 and with ε of RMSNorm 0. `sizes` are named as SIZES."""
    options = sizes | {"head_dim": 8, "alpha_attn_softmax": sqrt(8), "sigma_init": 0.5, "alpha_emb": 2.0}
    if link.source == "sp":
        options |= {"base_width": sizes["width"], "base_layers": sizes["layers"], "sigma_init": 1.0, "alpha_emb": 1.0}
    alpha_res = {"umup": 1 / 2, "umup-iclr": 1 / 2 / sqrt(2)}

    def side(scheme: str) -> Plan:
        has = ("width", "layers", "head_dim", *SCHEMES[scheme].hyperparameters)
        mine: dict[str, Any] = {name: value for name, value in options.items() if name in has}
        mine |= {"alpha_res": alpha_res[scheme]} if scheme in alpha_res else {}
        config = ModelConfig(scheme=scheme, seq_len=16, vocab_size=24, norm_eps=0.0, **mine)
        return plan(config, SEQUENCES * config.seq_len)

    return side(link.source), side(link.target)


def measure(link: Link, source: Plan, target: Plan, *, steps: int = 30, seed: int = 0) -> dict[str, Any]:
    """Train the source for `steps`, move it, train on for as many on both sides, in float64: a link as --json has it.

    Differences are the largest of any loss: `forward` right after the move, `losses` along training by Adam's ε,
    `with_needed_C` at ε = 0 with the C of `lr_factors` for those of the target: none, if `changes` forgets nothing.
    """
    batches, (lr_factor, needed) = _batches(source.config, 2 * steps, seed), lr_factors(source, target)
    lr = SCHEMES[link.source].typical_lr / 2  # with no schedule all of it is at the edge of chaos, where rounding grows
    C, own = ({name: w.C for name, w in p.weights.items()} for p in (source, target))
    half = AdamW(init_params(source.config, seed, np.float64), C, lr=lr, weight_decay=2**-13, eps=0.0)
    train(source, half, batches[:steps])

    def differences(moved_C: Factors, eps: float = 0.0) -> Array:
        here, (params, moments) = deepcopy(half), move(half.params, half.moments, source, target)
        there = AdamW(params, moved_C, lr=lr * lr_factor, weight_decay=2**-13, eps=eps)
        there.moments, there.updates = moments, half.updates
        here.eps = eps
        return np.abs(train(target, there, batches[steps:]) - train(source, here, batches[steps:]))

    by_eps = {f"{eps:g}": differences(own, eps) for eps in (0.0, 1e-8)}
    forward, with_needed_C = float(by_eps["0"][0]), float(differences(needed).max())
    same, kept, said = forward <= SAME, bool(by_eps["0"].max() <= SAME), changes(source, target)
    return {
        **link._asdict(), "weights": weight_factors(source, target), "C": {name: own[name] / C[name] for name in C},
        "changes": said, "forward": forward, "losses": {eps: float(found.max()) for eps, found in by_eps.items()},
        "with_needed_C": with_needed_C,
        "verdict": f"the same network, {'the same' if kept else 'another'} trajectory" if same else "another network",
        "passed": same and with_needed_C <= SAME and link.exact == kept == (not said),
    }  # fmt: skip


def train(p: Plan, optimizer: AdamW, text: Array) -> Array:
    """The losses (N,) of training on text (N, B, T+1), at a constant learning rate."""
    losses = []
    for batch in text:
        leaves = {name: Tensor(w, name) for name, w in optimizer.params.items()}
        out = loss(leaves, batch[:, :-1], batch[:, 1:], p)
        backpropagate(out)
        losses.append(float(out.data))
        optimizer.step({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, 1.0)
    return np.array(losses)


def _batches(config: ModelConfig, count: int, seed: int) -> Array:
    """Sequences that count on by 1, 2 or 3, (count, B, T+1). The inputs of the first batch have every token: at ε = 0
    Adam would divide 0 by 0 in the embedding of one that did not come up yet."""
    rng, V, shape = np.random.default_rng(seed), config.vocab_size, (count, SEQUENCES, config.seq_len + 1)
    text = (rng.integers(V, size=(*shape[:2], 1)) + rng.integers(1, 4, shape).cumsum(-1)) % V
    text[0, :, :-1].flat[:V] = np.arange(V)
    return text


def main(argv: list[str] | None = None) -> int:
    """The command `chain`: 0 when every step does what its row says, 1 when one does not, 2 on a bad argument."""
    parser = Parser("chain", __doc__ or "", examples="  microumup chain\n  microumup chain --width 64 --layers 4")
    words = {f.name: f.metadata["help"] for f in fields(ModelConfig) if f.name in SIZES}
    for name, text in (words | {"steps": "updates before the move, and again after it"}).items():
        parser.add_argument(option_name(name), type=few, metavar="N", help=f"{text} (default: %(default)s)")
    parser.set_defaults(**SIZES, steps=30)
    shared(parser, "quiet", seed="of the initial weights and the text", json="passed, and all steps")
    args = parser.parse_args(argv)
    with bad_input(parser):
        check_least(args, steps=2, seed=0)
        pairs = [plans(link, {name: getattr(args, name) for name in SIZES}) for link in CHAIN]
    found = []
    for link, pair in zip(CHAIN, pairs, strict=True):
        found.append(measure(link, *pair, steps=args.steps, seed=args.seed))
        _print(found[-1], say(args.quiet))
    if failed := [f"{f['source']} -> {f['target']}" for f in found if not f["passed"]]:
        parser.complain(f"not what the row says: {', '.join(failed)}")
    json_line(args, {"passed": not failed, "steps": found})
    return 1 if failed else 0


def _print(found: dict[str, Any], echo: Callable[..., None]) -> None:
    def factors(names: list[str]) -> str:
        w, C = (_span([found[key][name] for name in names]) for key in ("weights", "C"))
        return f"w x {w:10}C x {C}"

    echo(f"{found['source']} -> {found['target']}: {found['does']}")
    for words, kinds in _by_kind(list(found["C"]), factors).items():
        echo(f"    {words:32}{kinds}")
    measured = ", ".join(f"{worst:.1e} at ε = {eps}" for eps, worst in found["losses"].items())
    echo(f"    losses differ by {found['forward']:.1e} after the move; along training by {measured}, "
         f"{found['with_needed_C']:.1e} with C = θ C")  # fmt: skip
    verdict = f"    {'ok' if found['passed'] else 'FAIL'}  {found['verdict']}" + ", because" * bool(found["changes"])
    echo("\n        ".join([verdict, *found["changes"]]))
