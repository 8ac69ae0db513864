"""Our scheme `mup` against `mup`, the library of µP's authors: init, multiplier, learning rate and decay, training.

Its µP is over width alone, so here base_layers = layers, where our depth factors are 1. Attention's 1/K is in none of
its functions: its manual leaves that, like α_emb, to the model's author, who is `Llama` below.
"""

from typing import Any

import numpy as np
import pytest
from test_torch import F, attend, heads, rotate, torch  # skips this file too where there is no PyTorch

from microumup.config import ModelConfig
from microumup.engine import Tensor, backpropagate
from microumup.model import init_params, loss
from microumup.optim import DECAYS, AdamW
from microumup.plan import plan, weights

mup = pytest.importorskip("mup", reason="needs mup: pip install 'microumup[peers]'")
WIDTHS = (16, 32, 48)  # the first is the base
LR, DECAY = 0.01, 0.02


def config(width: int) -> ModelConfig:
    return ModelConfig(
        scheme="mup", width=width, base_width=16, layers=2, base_layers=2, head_dim=4, seq_len=7, vocab_size=11,
        sigma_init=0.5, alpha_emb=3.0, eta_emb=4.0, alpha_attn_softmax=1.5, alpha_loss_softmax=2.0,
    )  # fmt: skip


class Llama(torch.nn.Module):
    """As a user of mup writes it: MuReadout for a head, attention scores over K."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        D, ffn = c.width, c.ffn_dim
        shapes = dict.fromkeys("qkvo", (D, D)) | dict.fromkeys(("up", "gate"), (D, ffn)) | {"down": (ffn, D)}
        self.c = c
        self.embedding = torch.nn.Embedding(c.vocab_size, D)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({name: torch.nn.Linear(*shape, bias=False) for name, shape in shapes.items()})
            for _ in range(c.layers)
        )
        self.head = mup.MuReadout(D, c.vocab_size, bias=False, output_mult=c.alpha_loss_softmax)
        self.double()

    def forward(self, tokens: Any) -> Any:
        c = self.c
        x = c.alpha_emb * self.embedding(tokens)
        for w in self.layers:
            h = F.rms_norm(x, (c.width,), eps=c.norm_eps)
            q, k = (rotate(heads(w[name](h), c.head_dim)).transpose(1, 2).flatten(-2) for name in "qk")
            x = x + w["o"](attend(q, k, w["v"](h), c.head_dim, c.alpha_attn_softmax / c.head_dim))
            h = F.rms_norm(x, (c.width,), eps=c.norm_eps)
            x = x + w["down"](F.silu(w["gate"](h)) * w["up"](h))
        return self.head(F.rms_norm(x, (c.width,), eps=c.norm_eps))

    def by_our_names(self) -> dict[str, Any]:
        return {
            name.removesuffix(".weight").replace("layers.", "layer"): parameter
            for name, parameter in self.named_parameters()
        }


def llama(width: int) -> Llama:
    model = Llama(config(width))
    mup.set_base_shapes(model, Llama(config(WIDTHS[0])), delta=Llama(config(WIDTHS[1])))
    return model


def adamw(model: Llama) -> Any:
    """mup multiplies the decay by η, ours is independent of it; it has no η̂_emb, but takes groups."""
    table = model.by_our_names()
    embedding = table.pop("embedding")
    lr_emb = LR * model.c.eta_emb
    groups = [
        {"params": [embedding], "lr": lr_emb, "weight_decay": DECAY / lr_emb},
        {"params": list(table.values()), "lr": LR, "weight_decay": DECAY / LR},
    ]
    return mup.MuAdamW(groups, lr=LR)


def groups_by_our_names(model: Llama) -> dict[str, dict[str, Any]]:
    group_of = {parameter: group for group in adamw(model).param_groups for parameter in group["params"]}
    return {name: group_of[parameter] for name, parameter in model.by_our_names().items()}


@pytest.mark.parametrize("width", WIDTHS)
def test_learning_rate_of_every_parameter(width: int) -> None:
    table = weights(config(width))
    theirs = {name: group["lr"] / LR for name, group in groups_by_our_names(llama(width)).items()}
    assert theirs == pytest.approx({name: w.C for name, w in table.items()}, rel=1e-15)


@pytest.mark.parametrize("width", WIDTHS)
def test_weight_decay_of_every_parameter_is_our_independent_mode(width: int) -> None:
    groups = groups_by_our_names(llama(width))
    theirs = {name: group["lr"] * group["weight_decay"] for name, group in groups.items()}
    ours = {name: DECAYS["independent"](DECAY, 1.0, LR, w.C) for name, w in weights(config(width)).items()}
    assert theirs == pytest.approx(ours, rel=1e-15)


@pytest.mark.parametrize("width", WIDTHS)
def test_multiplier_of_the_readout(width: int) -> None:
    head = llama(width).head
    head.weight.data.fill_(1.0)
    logits = head(torch.ones(width, dtype=torch.double)).detach().numpy()
    ours = config(width).alpha_loss_softmax * weights(config(width))["head"].A * width
    assert logits == pytest.approx(ours, rel=1e-14)


@pytest.mark.parametrize("width", WIDTHS)
def test_init_std_of_every_parameter(width: int) -> None:
    """mup.normal_ is told the std at the base shape; drawn twice from one seed, its own std is the ratio."""
    base, theirs = weights(config(WIDTHS[0])), {}
    for name, parameter in llama(width).by_our_names().items():
        torch.manual_seed(0)
        mup.normal_(parameter, std=base[name].init_std)
        torch.manual_seed(0)
        ratio = parameter.detach() / torch.randn_like(parameter)
        theirs[name] = float(ratio[0, 0])
        assert ratio.numpy() == pytest.approx(theirs[name], rel=1e-13)
    assert theirs == pytest.approx({name: w.init_std for name, w in weights(config(width)).items()}, rel=1e-13)


@pytest.mark.parametrize("width", WIDTHS)
def test_training_of_a_whole_llama(width: int) -> None:
    numbers = plan(config(width), 3 * 7)
    ours, model = init_params(numbers.config, 0, np.float64), llama(width)
    theirs, peer = model.by_our_names(), adamw(model)
    for name, parameter in theirs.items():
        parameter.data.copy_(torch.tensor(ours[name]))
    optimizer = AdamW(ours, {name: w.C for name, w in numbers.weights.items()}, lr=LR, weight_decay=DECAY)
    for step in range(10):
        batch = np.random.default_rng(step).integers(0, 11, (3, 8))
        tokens, targets = batch[:, :-1], batch[:, 1:]
        tensors = {name: Tensor(w, name) for name, w in ours.items()}
        out = loss(tensors, tokens, targets, numbers)
        backpropagate(out)
        peer.zero_grad()
        expected = F.cross_entropy(model(torch.tensor(tokens)).flatten(0, 1), torch.tensor(targets).flatten())
        expected.backward()
        assert float(out.data) == pytest.approx(float(expected.detach()), rel=1e-9)
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tensor.grad, theirs[name].grad.numpy(), rtol=1e-6, atol=1e-9, err_msg=name)
        optimizer.step({name: t.grad for name, t in tensors.items() if t.grad is not None}, 1.0)
        peer.step()
    for name, w in ours.items():
        np.testing.assert_allclose(w, theirs[name].detach().numpy(), rtol=0, atol=1e-8, err_msg=name)
