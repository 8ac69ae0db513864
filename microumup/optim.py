"""AdamW and SGD: a learning rate per weight from the table, weight decay independent of it (Table 6).

    s(t)     the schedule, in [0, 1]:  linear warm-up, then a cosine down to 10 %
    AdamW    w <- w - s η C m̂/(√v̂ + ε)  - s λ w
    SGD      w <- w - s η (g / c_W)      - s λ w

Neither η nor C multiplies λ: that is what makes the decay independent, and keeps it unchanged when a factor moves
between multiplier, init and learning rate (abc-symmetry). DECAYS has two other readings of weight decay.
"""

from collections.abc import Callable, Iterator
from math import cos, pi

import numpy as np

from microumup.backend import Array, xp_of
from microumup.threads import Threads

BLOCK = 1 << 16  # elements updated at a time, so that they, their gradient, m and v stay in the processor's cache

Arrays = dict[str, Array]
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


class AdamW:
    """Adam with decoupled weight decay. Writes to `params`, C-contiguous arrays, in place.

    `lr_factors` are the C of the table (`Weight.C`), `lr` is η, `weight_decay` is λ and `decay` one of DECAYS.
    """

    def __init__(
        self, params: Arrays, lr_factors: Factors, *, lr: float, weight_decay: float = 0.0,
        decay: str = "independent", betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    ) -> None:  # fmt: skip
        self.params, self.lr_factors = params, lr_factors
        self.lr, self.weight_decay, self.decay, self.betas, self.eps = lr, weight_decay, DECAYS[decay], betas, eps
        self.updates = 0
        self.m = {name: xp_of(w).zeros_like(w) for name, w in params.items()}
        self.v = {name: xp_of(w).zeros_like(w) for name, w in params.items()}

    def step(self, grads: Arrays, s: float, threads: Threads = Threads()) -> None:
        """One update. grads has the shapes of params; s is the schedule's value."""
        self.updates += 1
        threads.run(lambda i: self._update(grads, s, threads, i))

    def _update(self, grads: Arrays, s: float, threads: Threads, i: int) -> None:
        beta1, beta2 = self.betas
        m_bias, v_bias = 1 - beta1**self.updates, 1 - beta2**self.updates
        for name, (w, g, m, v) in threads.deal(blocks(self.params, grads, self.m, self.v), i):
            C = self.lr_factors[name]
            kept = 1 - self.decay(self.weight_decay, s, self.lr, C)
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            # m̂/(√v̂ + ε), with m̂ = m/m_bias and v̂ = v/v_bias
            update = xp_of(v).sqrt(v)
            update += self.eps * v_bias**0.5
            xp_of(v).divide(m, update, out=update)
            update *= s * self.lr * C * v_bias**0.5 / m_bias
            if kept != 1:
                w *= kept
            w -= update

    def state(self) -> Arrays:
        """What a checkpoint keeps, beside the params and the number of updates."""
        return {f"{kind}/{name}": a for kind, arrays in (("m", self.m), ("v", self.v)) for name, a in arrays.items()}

    def load_state(self, state: Arrays, updates: int) -> None:
        self.updates = updates
        for name in self.params:
            self.m[name], self.v[name] = state[f"m/{name}"], state[f"v/{name}"]


class SGD:
    """Gradient descent on the true gradient: each g is divided by its constant c_W first (App. A.4).

    `gradient_constants` are `model.gradient_constants(config, tokens per batch)`. The C of the table are Adam's
    and are not used: SGD's learning rate does not transfer over width by them.
    """

    def __init__(
        self, params: Arrays, gradient_constants: Factors, *, lr: float, weight_decay: float = 0.0,
        decay: str = "independent",
    ) -> None:  # fmt: skip
        self.params, self.gradient_constants = params, gradient_constants
        self.lr, self.weight_decay, self.decay = lr, weight_decay, DECAYS[decay]
        self.updates = 0

    def step(self, grads: Arrays, s: float, threads: Threads = Threads()) -> None:
        """One update. grads has the shapes of params; s is the schedule's value."""
        self.updates += 1
        threads.run(lambda i: self._update(grads, s, threads, i))

    def _update(self, grads: Arrays, s: float, threads: Threads, i: int) -> None:
        kept = 1 - self.decay(self.weight_decay, s, self.lr, 1.0)
        for name, (w, g) in threads.deal(blocks(self.params, grads), i):
            if kept != 1:
                w *= kept
            w -= (s * self.lr / self.gradient_constants[name]) * g

    def state(self) -> Arrays:
        """SGD remembers nothing but the number of updates."""
        return {}

    def load_state(self, state: Arrays, updates: int) -> None:
        self.updates = updates


def blocks(*arrays: Arrays) -> Iterator[tuple[str, tuple[Array, ...]]]:
    """By weight, flat views of all that belongs to it, BLOCK elements at a time; on a GPU all at once."""
    for name, w in arrays[0].items():
        flat = [of[name].reshape(-1) for of in arrays]
        block = BLOCK if xp_of(w) is np else w.size
        for j in range(0, w.size, block):
            yield name, tuple(a[j : j + block] for a in flat)
