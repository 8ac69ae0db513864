"""Grader of exercise 07: `adamw_step` against the package's `adamw`, over some updates with random gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grading import compare, require, solve

from microumup.optim import adamw

pytestmark = pytest.mark.lesson07


def grade(adamw_step: Callable[..., Any]) -> None:
    """Raise AssertionError at the first weight or running mean that is wrong."""
    rng = np.random.default_rng()
    w, m, v = rng.standard_normal(7), np.zeros(7), np.zeros(7)
    beta1, beta2, eps = 0.9, 0.99, 0.3  # an ε that counts: with 1e-8 its place could not be seen
    lr, decay = float(rng.uniform(0.02, 0.05)), float(rng.uniform(0.1, 0.2))
    for t in range(1, 6):
        g = rng.standard_normal(7)
        given = [array.copy() for array in (w, g, m, v)]
        yours = adamw_step(*given, t, lr, decay, beta1, beta2, eps)
        require(
            isinstance(yours, tuple) and len(yours) == 3,
            f"yours is {type(yours).__name__}, expected a tuple of three, the next w, m and v",
        )
        for name, before, after in zip("wgmv", (w, g, m, v), given, strict=True):
            require(
                np.array_equal(before, after),
                f"update {t}: {name} was changed. Likely: {name} += … or {name} *= … writes into it; make a new array",
            )
        right = adamw(w, g, m, v, t=t, lr=lr, decay=decay, betas=(beta1, beta2), eps=eps)
        names, mistakes = ("w", "m", "v"), wrong_ways(w, g, m, v, t, lr, decay, beta1, beta2, eps)
        for i in (1, 2, 0):  # w last: it is made of the other two
            compare(f"{names[i]} after update {t}", yours[i], right[i], mistakes=mistakes[i])
        w, m, v = right


def wrong_ways(
    w: Any, g: Any, m: Any, v: Any, t: int, lr: float, decay: float, beta1: float, beta2: float, eps: float
) -> tuple[dict[str, Any], ...]:
    """What w, m and v become by likely mistakes, each with its hint."""
    m1, v1 = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m1 / (1 - beta1**t), v1 / (1 - beta2**t)
    kept, root = (1 - decay) * w, np.sqrt(v_hat)
    of_w = {
        "the corrections are missing: divide m by 1 - beta1^t and v by 1 - beta2^t": (m1, np.sqrt(v1) + eps, kept),
        "the correction of m is missing: divide it by 1 - beta1^t": (m1, root + eps, kept),
        "the correction of v is missing: divide it by 1 - beta2^t": (m_hat, np.sqrt(v1) + eps, kept),
        "eps stands under the root: it is added to the root": (m_hat, np.sqrt(v_hat + eps), kept),
        "eps is missing": (m_hat, root, kept),
        "the decay is multiplied by lr, which is coupled decay: here decay alone is the share": (
            m_hat, root + eps, (1 - lr * decay) * w,
        ),
        "there is no decay: the step takes the share decay of w away": (m_hat, root + eps, w),
        "the root of v_hat is missing": (m_hat, v_hat + eps, kept),
        "the step has g in place of m_hat": (g, root + eps, kept),
    }  # fmt: skip
    decayed = g + decay * w  # Adam with L2 in the gradient, as it was before AdamW
    m2, v2 = beta1 * m + (1 - beta1) * decayed, beta2 * v + (1 - beta2) * decayed * decayed
    return (
        {hint: rest - lr * above / below for hint, (above, below, rest) in of_w.items()},
        {
            "it was returned with its correction, which is made anew in each update": m_hat,
            "beta1 and 1 - beta1 are exchanged": (1 - beta1) * m + beta1 * g,
            "the decay was put into the gradient: it is taken from w directly": m2,
            "it has beta2 in it, which belongs to v": beta2 * m + (1 - beta2) * g,
        },
        {
            "it was returned with its correction, which is made anew in each update": v_hat,
            "beta2 and 1 - beta2 are exchanged": (1 - beta2) * v + beta2 * g * g,
            "the decay was put into the gradient: it is taken from w directly": v2,
            "g is not squared": beta2 * v + (1 - beta2) * g,
            "it has beta1 in it, which belongs to m": beta1 * v + (1 - beta1) * g * g,
        },
    )


def test_exercise() -> None:
    solve("07", grade, "adamw_step")
