"""Exercise 07: one step of AdamW, with weight decay that is independent of the learning rate.

Write `adamw_step`. Graded by: pytest -m lesson07 lessons
Hints: python lessons/hint.py 07 1  (then 2, then 3)
"""

from microumup.backend import Array


def adamw_step(
    w: Array, g: Array, m: Array, v: Array, t: int, lr: float, decay: float, beta1: float, beta2: float, eps: float
) -> tuple[Array, Array, Array]:
    """The next w, m and v. w is the weight, g its gradient, m and v are the running means; all have one shape (N,).

    t = 1, 2, … counts the updates, this one included. lr is the weight's learning rate s η C; decay is s λ, the share
    of w that this step takes away. Write to no array that is not yours.

    In a slow and obvious loop, with the corrections for m and v having started at 0:

        for i in range(N):
            m_new[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v_new[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i]
            m_hat = m_new[i] / (1 - beta1 to the power t)
            v_hat = v_new[i] / (1 - beta2 to the power t)
            step = m_hat / (root of v_hat, plus eps)
            w_new[i] = w[i] - decay * w[i] - lr * step
        return w_new, m_new, v_new

    Yours shall need no loop.
    """
    raise NotImplementedError
