"""Exercise 03: the constant between u-µP's gradient of a weight and the true one.

Write `gradient_constant`. Graded by: pytest -m lesson03 lessons
Hints: python lessons/hint.py 03 1  (then 2, then 3)
"""

from microumup.plan import Plan


def gradient_constant(plan: Plan, name: str) -> float:
    """c_W of one weight: its gradient in u-µP over the true gradient of the loss.

    `name` is one of `plan.weights`: embedding, head, or layer0.q, .k, .v, .o, .gate, .up, .down, layer1.q and so on.
    The factors are in the plan: plan.loss, plan.embedding, plan.attention, plan.gated_silu and plan.linears[name].scale
    have .y forward, .dx and .dw backward. plan.branches[2 * i] is the attention branch of layer i, plan.branches[2 * i
    + 1] its FFN branch; they have .a and .b forward, .dbranch and .dbase backward. RMSNorm and RoPE have none.

    In words, and obvious loops:

        c = 1
        for every op on one way from the loss back to the weight:
            c = c * (factor of the gradient that goes on along this way) / (factor of the op's output)

    The last op is the weight's own, and the gradient that goes on there is dw. The way enters a branch at its end,
    where the forward factor is a and the backward one dbranch. Past other branches take the way along their skips.
    Do not call `gradient_constants`: that is what yours is graded against.
    """
    raise NotImplementedError
