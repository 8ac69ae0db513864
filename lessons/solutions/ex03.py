"""Exercise 03, solved."""

from microumup.ops import Scale
from microumup.plan import Plan


def gradient_constant(plan: Plan, name: str) -> float:
    """c_W of one weight: its gradient in u-µP over the true gradient of the loss."""

    def passed(scale: Scale) -> float:
        return scale.dx / scale.y

    c = passed(plan.loss)
    if name == "head":
        own = plan.linears["head"].scale
        return c * own.dw / own.y
    c *= passed(plan.linears["head"].scale)
    if name == "embedding":  # b along the skips is b in both directions
        return c * plan.embedding.dw / plan.embedding.y

    layer, _, kind = name.partition(".")
    in_attention = kind in ("q", "k", "v", "o")
    branch = plan.branches[2 * int(layer.removeprefix("layer")) + (0 if in_attention else 1)]
    c *= branch.dbranch / branch.a
    if kind not in ("o", "down"):  # these stand at the branch's end; the way to the others passes them
        last, middle = ("o", plan.attention) if in_attention else ("down", plan.gated_silu)
        c *= passed(plan.linears[f"{layer}.{last}"].scale) * passed(middle)
    own = plan.linears[name].scale
    return c * own.dw / own.y
