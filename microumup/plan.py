"""The Plan: every number that u-µP decides about one model, worked out once from its config.

    config ──► plan ──► model ──► ops
    (what)    (numbers)  (maths)  (arrays)

What stands before this module works the numbers out, what stands after it only reads them: the model passes them to
its ops, `explain` prints them, `gradient_constants` multiplies along them.

Legend: D width, F FFN dim, V vocabulary, K head dim, b tokens in a batch, L residual branches, two a layer.
"""

from typing import NamedTuple

from microumup.config import ModelConfig
from microumup.fp8 import LinearFormats, parse_recipe
from microumup.ops import ResidualScale, Scale
from microumup.parametrization import Shape, Weight, weight


class Linear(NamedTuple):
    """Settings that a linear is called with, by the names `ops.linear` has for them."""

    scale: Scale
    fp8: LinearFormats


class Plan(NamedTuple):
    """A config with everything that follows from it."""

    config: ModelConfig
    batch_tokens: int  # b: how many tokens the gradients are summed over
    weights: dict[str, Weight]  # by name: embedding, layer0.q, …, head; Tables 1-3
    embedding: Scale
    linears: dict[str, Linear]  # of every weight but the embedding
    score_scale: float  # of q kᵀ, with α_attn-softmax in it
    attention: Scale
    gated_silu: Scale
    branches: tuple[ResidualScale, ...]  # attention and FFN of layer 0, of layer 1, …
    loss: Scale

    def weighted(self, weight: float) -> "Plan":
        """The plan in which `weight` times the loss is differentiated: every gradient is multiplied by it."""
        return self._replace(loss=self.loss._replace(dx=weight * self.loss.dx))


def plan(config: ModelConfig, batch_tokens: int) -> Plan:
    """The Plan of `config`, for batches of `batch_tokens` tokens, on which nothing of a forward pass depends."""
    c, scheme, b = config, config.rules, batch_tokens
    table, recipe, factors = weights(c), parse_recipe(c.fp8), scheme.factors
    depths = c.branches, 2 * c.base_layers
    multipliers = scheme.residual.multipliers(*depths, c.alpha_res, c.alpha_res_attn_ratio)
    return Plan(
        config=c,
        batch_tokens=b,
        weights=table,
        embedding=factors.embedding(table["embedding"].A, c.vocab_size, b),
        linears={
            name: Linear(factors.linear(w.A, w.A_backward, b), recipe[name.rpartition(".")[2]])
            for name, w in table.items()
            if name != "embedding"
        },
        score_scale=c.alpha_attn_softmax * scheme.score_scale(c.head_dim),
        attention=factors.attention(c.alpha_attn_softmax, c.head_dim, c.seq_len),
        gated_silu=factors.gated_silu(c.alpha_ffn_act),
        branches=tuple(factors.residual(a, b) for a, b in multipliers),
        loss=factors.cross_entropy(c.alpha_loss_softmax, c.vocab_size, b),
    )


def weights(config: ModelConfig) -> dict[str, Weight]:
    """Every weight of the model by name, with its scheme's rules worked out. An implementer's checklist."""
    c, scheme, D, F, V = config, config.rules, config.width, config.ffn_dim, config.vocab_size

    def row(type: str, fan_in: int, fan_out: int, *, in_branch: bool) -> Weight:
        base_fan_in = fan_in if type == "input" else fan_in * c.base_width / D
        sizes = fan_in, fan_out, base_fan_in, c.branches, 2 * c.base_layers, in_branch
        return weight(scheme, type, Shape(*sizes, c.sigma_init, c.alpha_emb, c.eta_emb))

    layer = {name: row("hidden", D, D, in_branch=True) for name in ("q", "k", "v", "o")}
    layer |= {name: row("hidden", D, F, in_branch=True) for name in ("gate", "up")}
    layer |= {"down": row("hidden", F, D, in_branch=True)}
    layers = {f"layer{l}.{name}": w for l in range(c.layers) for name, w in layer.items()}  # noqa: E741
    return {"embedding": row("input", V, D, in_branch=False), **layers, "head": row("output", D, V, in_branch=False)}


def gradient_constants(plan: Plan) -> dict[str, float]:
    """c_W of every weight: what `backpropagate` puts out over the true gradient of the mean loss (App. A.4).

    The product of backward over forward factors along the way from the loss to W. Where a branch begins backward, dy
    has not yet met a (the delay of App. B), which divides by it; where it ends, it has. Ways through a branch and past
    it meet at its base, where both have to bring the same constant: so inside of a branch nothing but dw may differ.
    Adam does not see these constants but through its ε; SGD divides by them.
    """

    def own(name: str) -> float:
        return plan.linears[name].scale.dw / plan.linears[name].scale.y

    def through(scale: Scale) -> float:
        return scale.dx / scale.y

    at_logits = through(plan.loss)
    in_trunk = at_logits * through(plan.linears["head"].scale)
    constants = {"embedding": in_trunk * plan.embedding.dw / plan.embedding.y, "head": at_logits * own("head")}
    for layer in range(plan.config.layers):
        of = {name: f"layer{layer}.{name}" for name in ("q", "k", "v", "o", "gate", "up", "down")}
        attn, ffn = (in_trunk * r.dbranch / r.a for r in plan.branches[2 * layer : 2 * layer + 2])
        constants |= {of["o"]: attn * own(of["o"]), of["down"]: ffn * own(of["down"])}
        attn *= through(plan.linears[of["o"]].scale) * through(plan.attention)
        ffn *= through(plan.linears[of["down"]].scale) * through(plan.gated_silu)
        constants |= {of[name]: attn * own(of[name]) for name in ("q", "k", "v")}
        constants |= {of[name]: ffn * own(of[name]) for name in ("gate", "up")}
    return {name: constants[name] for name in plan.weights}
