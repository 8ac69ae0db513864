"""AdamW and SGD: a learning rate per weight from the table, weight decay independent of it (Table 6).

    s(t)     the schedule, in [0, 1]:  linear warm-up, then a cosine down to 10 %

    AdamW    m <- m + (1 - β1) (g - m)               m̂ = m / (1 - β1^t)
             v <- v + (1 - β2) (g² - v)              v̂ = v / (1 - β2^t)
             w <- (1 - s λ) w - s η C m̂ / (√v̂ + ε)

    SGD      w <- (1 - s λ) w - s η (g / c_W)

Neither η nor C multiplies λ: that is what makes the decay independent, and keeps it unchanged when a factor moves
between multiplier, init and learning rate (abc-symmetry). DECAYS has two other readings of weight decay.
"""

from collections.abc import Callable
from math import cos, pi
from typing import Any

from microumup.backend import Array, xp_of
from microumup.cpu import Arrays, Threads

Factors = dict[str, float]


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """s(t) of update `step` = 0 … steps - 1: up to 1 over `warmup_steps` updates, then a cosine to 0.1 at the last."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step + 1 - warmup_steps) / (steps - warmup_steps)
    return 0.1 + 0.45 * (1 + cos(pi * progress))


# The share of a weight that one update takes away, from λ, s(t), η and C.
DECAYS: dict[str, Callable[[float, float, float, float], float]] = {
    "independent": lambda lam, s, eta, C: s * lam,  # of the peak learning rate: the paper's (Table 6)
    "fully-independent": lambda lam, s, eta, C: lam,  # of the schedule too
    "coupled": lambda lam, s, eta, C: s * eta * C * lam,  # what most libraries call AdamW; breaks the abc-symmetry
}


def adamw(
    w: Array, g: Array, m: Array, v: Array, *, t: int, lr: float, decay: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The next w, m and v, all of one shape, in update t = 1, 2, …; lr is s η C, decay the share of w it takes away."""
    beta1, beta2 = betas
    m = m + (1 - beta1) * (g - m)
    v = v + (1 - beta2) * (g * g - v)
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return (1 - decay) * w - lr * m_hat / (xp_of(v).sqrt(v_hat) + eps), m, v


class Optimizer:
    """Settings that both rules share: `lr` is η, `weight_decay` λ, `decay` one of DECAYS. Writes to `params` in place.

    A checkpoint keeps `params`, `moments` and `updates`, the number of updates so far.
    """

    def __init__(
        self, params: Arrays, *, lr: float, weight_decay: float = 0.0, decay: str = "independent",
        threads: Threads = Threads(),
    ) -> None:  # fmt: skip
        self.params, self.lr, self.weight_decay, self.decay = params, lr, weight_decay, DECAYS[decay]
        self.updates, self.threads = 0, threads
        self.moments: dict[str, Arrays] = {}


class AdamW(Optimizer):
    """Adam with decoupled weight decay. `lr_factors` are the C of the table, `rule` is `adamw` or a twin."""

    def __init__(
        self, params: Arrays, lr_factors: Factors, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        rule: Callable[..., tuple[Array, Array, Array]] = adamw, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, **settings)
        self.lr_factors, self.rule, self.betas, self.eps = lr_factors, rule, betas, eps
        self.moments = {kind: {name: xp_of(w).zeros_like(w) for name, w in params.items()} for kind in "mv"}

    def step(self, grads: Arrays, s: float) -> None:
        """One update. grads has the shapes of params; s is the schedule's value."""
        self.updates += 1

        def update(name: str, w: Array, g: Array, m: Array, v: Array) -> None:
            lr = s * self.lr * (C := self.lr_factors[name])
            decay = self.decay(self.weight_decay, s, self.lr, C)
            new = self.rule(w, g, m, v, t=self.updates, lr=lr, decay=decay, betas=self.betas, eps=self.eps)
            for array, value in zip((w, m, v), new, strict=True):
                if value is not array:
                    array[:] = value

        self.threads.over(update, self.params, grads, *self.moments.values())


class SGD(Optimizer):
    """Gradient descent on the true gradient: each g is divided by its constant c_W first (App. A.4).

    `gradient_constants` are `plan.gradient_constants(plan)`. The C of the table are Adam's and are not used: SGD's
    learning rate does not transfer over width by them.
    """

    def __init__(self, params: Arrays, gradient_constants: Factors, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.gradient_constants = gradient_constants

    def step(self, grads: Arrays, s: float) -> None:
        """One update. grads has the shapes of params; s is the schedule's value."""
        self.updates += 1
        decay = self.decay(self.weight_decay, s, self.lr, 1.0)

        def update(name: str, w: Array, g: Array) -> None:
            w[:] = (1 - decay) * w - s * self.lr / self.gradient_constants[name] * g

        self.threads.over(update, self.params, grads)
