"""The same Llama in PyTorch, and in unit-scaling, the library of u-µP's authors: what `bench` holds our step against.

Both are written as one would write eager PyTorch who cares for speed: PyTorch's own kernels for attention, RMSNorm and
the loss, RoPE as one complex multiplication, no modules to call and no copies that can be done without. One projection
for q, k and v and one for gate and up were tried: cutting gradients up and putting them together again costs PyTorch
more than the fewer calls gain. Weights and batch are ours.

Legend: B batch, T sequence, D width, H heads, K head dim, V vocabulary.
"""

from importlib import import_module
from math import sqrt
from typing import Any, ClassVar

from microumup.backend import Array, install_hint
from microumup.config import ModelConfig
from microumup.plan import gradient_constants, plan


def load_peer(name: str) -> tuple[Any, Any]:
    """The modules torch and that of the peer `name`. Raises ValueError, with how to get them, where one is missing."""
    module = TWINS[name].module
    try:
        return import_module("torch"), import_module(module)
    except ImportError as error:
        raise ValueError(f"--vs {name}: needs {error.name or module}, {install_hint('peers')}") from None


class Twin:
    """Plain PyTorch, the twin of our scheme `sp`. `step` is a whole training step on the one batch it was given."""

    name, module, scheme = "torch", "torch", "sp"
    adamw: ClassVar = {"lr": 1e-5, "weight_decay": 0.1}  # so low that hundreds of steps change nothing that takes time

    def __init__(
        self, config: ModelConfig, params: dict[str, Array], batch: tuple[Array, Array], *, fused: bool, threads: int
    ) -> None:
        """`params` by our names, `batch` the tokens and targets (B, T); `fused` says which of PyTorch's AdamW.

        Raises ValueError where the peer is not installed.
        """
        self.torch, self.peer = load_peer(self.name)
        self.torch.set_num_threads(threads)
        self.config, self.tokens, self.targets = config, *map(self.torch.from_numpy, batch)
        self.weights = {name: self.parameter(name, self.torch.tensor(w)) for name, w in params.items()}
        K = config.head_dim
        frequency = config.rope_base ** (-self.torch.arange(0, K, 2) / K)  # (K/2,)
        angle = self.torch.arange(config.seq_len)[:, None] * frequency  # (T, K/2)
        self.turn = self.torch.polar(self.torch.ones_like(angle), angle)[:, None]  # (T, 1, K/2), complex
        self.optimizer = self.peer.optim.AdamW(self.weights.values(), fused=fused, **self.adamw)

    def parameter(self, name: str, w: Any) -> Any:
        """The parameter that is made of w."""
        return w.requires_grad_()

    def gradient_constant(self, name: str) -> float:
        """Their gradient of the weight `name` over the true one."""
        return 1.0

    def heads(self, x: Any) -> Any:
        """(B, T, D) -> (B, H, T, K), a view."""
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def rope(self, x: Any) -> Any:
        """Every pair of neighbours in a head turned, as ours are. (B, T, D) -> (B, T, D)."""
        pairs = self.torch.view_as_complex(x.unflatten(-1, (-1, self.turn.shape[-1], 2)))  # (B, T, H, K/2)
        return self.torch.view_as_real(pairs * self.turn).flatten(2)

    def loss(self) -> Any:
        """The mean loss of the batch, with PyTorch's tape behind it."""
        c, F, w = self.config, self.torch.nn.functional, self.weights
        x = F.embedding(self.tokens, w["embedding"])  # (B, T, D)
        for layer in range(c.layers):
            name = f"layer{layer}"
            h = F.rms_norm(x, (c.width,), eps=c.norm_eps)
            q, k, v = (F.linear(h, w[f"{name}.{kind}"]) for kind in "qkv")
            q, k, v = map(self.heads, (self.rope(q), self.rope(k), v))  # (B, H, T, K)
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)  # (B, T, D)
            x = x + F.linear(h, w[f"{name}.o"])
            h = F.rms_norm(x, (c.width,), eps=c.norm_eps)
            h = F.silu(F.linear(h, w[f"{name}.gate"])) * F.linear(h, w[f"{name}.up"])  # (B, T, F)
            x = x + F.linear(h, w[f"{name}.down"])
        logits = F.linear(F.rms_norm(x, (c.width,), eps=c.norm_eps), w["head"])  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())

    def backward(self) -> float:
        """Forward and backward: the loss. Gradients are left in `weights`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        return float(loss.item())

    def step(self) -> float:
        """Forward, backward, AdamW: the loss before the update."""
        loss = self.backward()
        self.optimizer.step()
        return loss

    def loss_and_gradients(self) -> tuple[float, dict[str, Array]]:
        """The loss, and the true gradient of every weight: theirs over `gradient_constant`."""
        loss = self.backward()
        return loss, {name: w.grad.numpy() / self.gradient_constant(name) for name, w in self.weights.items()}


class UnitScalingTwin(Twin):
    """unit-scaling's own functions and optimizer, put together as its own decoder is: the twin of `umup-iclr`."""

    name, module, scheme = "unit-scaling", "unit_scaling", "umup-iclr"
    adamw: ClassVar = {"lr": 1e-4, "weight_decay": 2**-13}

    def parameter(self, name: str, w: Any) -> Any:
        depth = self.config.layers if name.startswith("layer") else None
        return self.peer.Parameter(w, "output" if name == "head" else "weight", depth)

    def gradient_constant(self, name: str) -> float:
        """Ours, but for one factor: the linears of its MLP go without a constraint, and so down's dx takes fan_out^-1/2
        there, where the paper and we take A, fan_in^-1/2. The gradients of up and gate are √(F/D) of ours."""
        c = self.config
        ours = gradient_constants(plan(c, self.tokens.numel()))[name]
        return ours * sqrt(c.ffn_dim / c.width) if name.endswith((".up", ".gate")) else ours

    def loss(self) -> Any:
        c, U, w = self.config, self.peer.functional, self.weights
        tau = self.peer.transformer_residual_scaling_rule(c.alpha_res, c.alpha_res_attn_ratio)
        x = U.embedding(self.tokens, w["embedding"])  # (B, T, D)
        for layer in range(c.layers):
            name, attn, ffn = f"layer{layer}", tau(2 * layer, c.branches), tau(2 * layer + 1, c.branches)
            h, skip = U.residual_split(x, attn)
            h = U.rms_norm(h, (c.width,), eps=c.norm_eps)
            q, k, v = (U.linear(h, w[f"{name}.{kind}"], None) for kind in "qkv")
            q, k, v = map(self.heads, (self.rope(q), self.rope(k), v))  # (B, H, T, K)
            h = U.scaled_dot_product_attention(q, k, v, is_causal=True, mult=c.alpha_attn_softmax)
            x = U.residual_add(U.linear(h.transpose(1, 2).flatten(-2), w[f"{name}.o"], None), skip, attn)
            h, skip = U.residual_split(x, ffn)
            h = U.rms_norm(h, (c.width,), eps=c.norm_eps)
            up, gate = (U.linear(h, w[f"{name}.{kind}"], None, constraint=None) for kind in ("up", "gate"))
            h = U.silu_glu(up, gate, mult=c.alpha_ffn_act)  # (B, T, F)
            x = U.residual_add(U.linear(h, w[f"{name}.down"], None, constraint=None), skip, ffn)
        logits = U.linear_readout(U.rms_norm(x, (c.width,), eps=c.norm_eps), w["head"], None)  # (B, T, V)
        return U.cross_entropy(logits.flatten(0, 1), self.targets.flatten(), mult=c.alpha_loss_softmax)


TWINS: dict[str, type[Twin]] = {twin.name: twin for twin in (Twin, UnitScalingTwin)}
