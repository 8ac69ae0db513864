"""Our hand-written backwards against PyTorch's autograd, in float64: every op, a whole Llama, and AdamW."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from microumup import ops
from microumup.config import ModelConfig
from microumup.engine import Tensor, backpropagate
from microumup.model import init_params, loss
from microumup.optim import AdamW
from microumup.plan import plan

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'microumup[peers]'")
F = torch.nn.functional
RNG = np.random.default_rng(0)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64, sums of at most some hundred terms in another order


def rotate(x: Any, base: float = 10_000.0) -> Any:
    """RoPE on (B, H, T, K) by the rotation matrices, written out."""
    K, T = x.shape[-1], x.shape[-2]
    angle = torch.arange(T)[:, None] * base ** (-torch.arange(0, K, 2).double() / K)
    even, odd, cos, sin = x[..., 0::2], x[..., 1::2], angle.cos(), angle.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def heads(x: Any, K: int) -> Any:
    return x.unflatten(-1, (-1, K)).transpose(1, 2)


def attend(q: Any, k: Any, v: Any, K: int, score_scale: float) -> Any:
    y = F.scaled_dot_product_attention(heads(q, K), heads(k, K), heads(v, K), is_causal=True, scale=score_scale)
    return y.transpose(1, 2).flatten(-2)


IDS = RNG.integers(0, 11, (2, 5))
OPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Any], list[tuple[int, ...]]]] = {
    "linear": (ops.linear, F.linear, [(2, 5, 8), (6, 8)]),
    "embedding": (lambda w: ops.embedding(IDS, w), lambda w: F.embedding(torch.tensor(IDS), w), [(11, 8)]),
    "rms_norm": (ops.rms_norm, lambda x: F.rms_norm(x, (8,), eps=1e-6), [(2, 5, 8)]),
    "rope": (
        lambda x: ops.rope(x, head_dim=4), lambda x: rotate(heads(x, 4)).transpose(1, 2).flatten(-2), [(2, 5, 8)]
    ),
    "attention": (
        lambda q, k, v: ops.attention(q, k, v, head_dim=4, score_scale=0.7),
        lambda q, k, v: attend(q, k, v, 4, 0.7),
        [(2, 5, 8)] * 3,
    ),
    "gated_silu": (ops.gated_silu, lambda x_in, x_gate: x_in * F.silu(x_gate), [(2, 5, 8)] * 2),
    "cross_entropy": (
        lambda z: ops.cross_entropy(z, IDS, alpha=1.5),
        lambda z: F.cross_entropy(1.5 * z.flatten(0, 1), torch.tensor(IDS).flatten()),
        [(2, 5, 11)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_op(name: str) -> None:
    ours, theirs, shapes = OPS[name]
    arrays = [RNG.standard_normal(shape) for shape in shapes]
    inputs, peers = [Tensor(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = ours(*inputs), theirs(*peers)
    np.testing.assert_allclose(y.data, expected.detach().numpy(), **CLOSE)
    dy = RNG.standard_normal(y.data.shape)
    backpropagate(y, np.asarray(dy))
    expected.backward(torch.tensor(dy))
    for x, peer in zip(inputs, peers, strict=True):
        np.testing.assert_allclose(x.grad, peer.grad.numpy(), **CLOSE)


def torch_llama(p: dict[str, Any], tokens: Any, targets: Any, c: ModelConfig) -> Any:
    """The standard parametrization, with none of our code."""
    x = F.embedding(tokens, p["embedding"])
    for layer in range(c.layers):
        w = {name.partition(".")[2]: value for name, value in p.items() if name.startswith(f"layer{layer}.")}
        h = F.rms_norm(x, (c.width,), eps=c.norm_eps)
        q, k = (rotate(heads(h @ w[name].T, c.head_dim)).transpose(1, 2).flatten(-2) for name in "qk")
        x = x + attend(q, k, h @ w["v"].T, c.head_dim, c.head_dim**-0.5) @ w["o"].T
        h = F.rms_norm(x, (c.width,), eps=c.norm_eps)
        x = x + (F.silu(h @ w["gate"].T) * (h @ w["up"].T)) @ w["down"].T
    logits = F.rms_norm(x, (c.width,), eps=c.norm_eps) @ p["head"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_a_whole_llama_and_20_steps_of_adamw() -> None:
    config, lr, decay = ModelConfig(scheme="sp", width=16, head_dim=4, seq_len=7, vocab_size=11), 0.01, 0.02
    ours = init_params(config, 0, np.float64)
    theirs = {name: torch.tensor(w, requires_grad=True) for name, w in ours.items()}
    # torch multiplies its decay by the learning rate, ours is independent of it
    peer = torch.optim.AdamW(theirs.values(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay / lr)
    optimizer = AdamW(ours, dict.fromkeys(ours, 1.0), lr=lr, weight_decay=decay)
    for step in range(20):
        batch = np.random.default_rng(step).integers(0, 11, (3, 8))
        tokens, targets = batch[:, :-1], batch[:, 1:]
        tensors = {name: Tensor(w, name) for name, w in ours.items()}
        out = loss(tensors, tokens, targets, plan(config, tokens.size))
        backpropagate(out)
        peer.zero_grad()
        expected = torch_llama(theirs, torch.tensor(tokens), torch.tensor(targets), config)
        expected.backward()
        assert float(out.data) == pytest.approx(float(expected.detach()), rel=1e-9)
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tensor.grad, theirs[name].grad.numpy(), rtol=1e-6, atol=1e-9, err_msg=name)
        optimizer.step({name: t.grad for name, t in tensors.items() if t.grad is not None}, 1.0)
        peer.step()
    for name, w in ours.items():
        np.testing.assert_allclose(w, theirs[name].detach().numpy(), rtol=0, atol=1e-8, err_msg=name)
