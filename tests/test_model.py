import tracemalloc
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest

from microumup import model, ops
from microumup.config import ModelConfig
from microumup.engine import Tensor, backpropagate
from microumup.model import Cache, evaluate, forward, init_params, loss
from microumup.optim import AdamW, schedule
from microumup.parametrization import SCHEMES
from microumup.plan import Plan, plan, weights

SIZE = {"width": 16, "head_dim": 8, "seq_len": 12, "vocab_size": 19}
TINY = ModelConfig(**SIZE, scheme="mup", base_width=8, base_layers=1)
# 20 batches of 3 sequences that go up by 7, modulo 19, from a random start: there is something to learn
TOKENS = (np.random.default_rng(1).integers(0, 19, (20, 3, 1)) + 7 * np.arange(13)) % 19


def tiny(scheme: str, **options: Any) -> Plan:
    base = {"base_width": 8, "base_layers": 1} if "base_width" in SCHEMES[scheme].hyperparameters else {}
    return plan(ModelConfig(**{"scheme": scheme} | SIZE | base | options), batch_tokens=3 * 12)


# 20 steps in float64: the same on every machine but for the order of additions, which 20 steps of a model this small
# do not amplify to 1e-9.
TRAJECTORIES = {
    "sp": [
        3.19031540966, 3.10760233611, 3.00840759876, 2.61942685801, 2.38205231014, 2.16845377135,
        1.62658671746, 1.56634499153, 1.34290147291, 1.14226104145, 0.980172728084, 0.968665232608,
        0.998169412666, 0.833802209241, 0.857231820022, 0.707209195931, 0.736086415913, 0.860049779099,
        0.843535625403, 0.792063899964,
    ],
    "mup": [
        2.91718491458, 2.94760360284, 3.01028564499, 2.88282201301, 2.86446107793, 2.7840949302,
        2.59665088188, 2.55699404711, 2.52225451867, 2.24896148671, 2.24035594389, 2.13592096802,
        2.19245962563, 2.08727911557, 2.10981917785, 1.93253274982, 2.0799989628, 2.19692197978,
        2.17029789953, 2.11885556942,
    ],
    "mup-table2": [
        2.91718491458, 2.94760378074, 3.01028591378, 2.88282252258, 2.86446184318, 2.78409601726,
        2.59665211379, 2.55699546573, 2.52225603844, 2.24896296735, 2.2403575837, 2.13592254536,
        2.19246153143, 2.08728098006, 2.10982110456, 1.93253449679, 2.08000093825, 2.19692420192,
        2.17030009484, 2.11885778791,
    ],
    "mup-table3": [
        2.88336973426, 2.4490463098, 1.96577463524, 1.46788353412, 0.915703537383, 0.451997257541,
        0.219650083465, 0.0963516502762, 0.0541707132632, 0.028773127276, 0.0211976481588, 0.0124343100153,
        0.00919666857417, 0.00803102515308, 0.00663289309339, 0.00692238009487, 0.00604462924366, 0.00475636731774,
        0.00452041622399, 0.00535010926309,
    ],
    "umup": [
        2.89984144757, 2.60203136663, 2.19047678867, 1.67069808191, 1.12595883484, 0.661375584959,
        0.330854445202, 0.172840375608, 0.102064573885, 0.0466578493052, 0.0355311073076, 0.0195267302638,
        0.0155176606105, 0.0111322734317, 0.0104782426492, 0.00977022221162, 0.00904959161018, 0.00800175268241,
        0.00718803259746, 0.00875210420609,
    ],
    "umup-iclr": [
        2.92715406423, 2.63976224612, 2.28345762967, 1.80642011333, 1.25392414008, 0.878155802554,
        0.465671262469, 0.295638830884, 0.147309269255, 0.0764987864495, 0.060352318095, 0.0292033093251,
        0.0315081000453, 0.022749652543, 0.0217024582555, 0.0194285506704, 0.0169260256074, 0.0134050369564,
        0.0121227340499, 0.0147759971921,
    ],
}  # fmt: skip


def trajectory(scheme: str) -> list[float]:
    numbers = tiny(scheme)
    params = init_params(numbers.config, 3, np.float64)
    lr_factors = {name: w.C for name, w in numbers.weights.items()}
    optimizer = AdamW(params, lr_factors, lr=SCHEMES[scheme].typical_lr, weight_decay=2**-10)
    losses = []
    for step, batch in enumerate(TOKENS):
        tensors = {name: Tensor(w, name) for name, w in params.items()}
        out = loss(tensors, batch[:, :-1], batch[:, 1:], numbers)
        backpropagate(out)
        optimizer.step({name: t.grad for name, t in tensors.items() if t.grad is not None}, schedule(step, 20, 5))
        losses.append(float(out.data))
    return losses


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pinned_trajectory(scheme: str) -> None:
    assert trajectory(scheme) == pytest.approx(TRAJECTORIES[scheme], rel=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_later_token_changes_no_earlier_logit(scheme: str) -> None:
    numbers = tiny(scheme)
    params = init_params(numbers.config, 0)
    tokens = TOKENS[0, :1, :12]
    changed = tokens.copy()
    changed[0, 7] = (changed[0, 7] + 1) % 19
    before, after = forward(params, tokens, numbers).data, forward(params, changed, numbers).data
    assert np.array_equal(before[:, :7], after[:, :7])
    assert not np.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_prefix_has_the_same_logits_at_any_length(scheme: str) -> None:
    numbers = tiny(scheme)
    params = init_params(numbers.config, 0, np.float64)
    tokens = TOKENS[0, :, :12]
    whole = forward(params, tokens, numbers).data
    for length in range(1, 12):
        prefix = forward(params, tokens[:, :length], numbers).data
        assert prefix == pytest.approx(whole[:, :length], abs=1e-13)  # matmuls of other shapes add in another order


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 6], [11, 1]])
def test_logits_with_the_cache_are_those_without(pieces: list[int]) -> None:
    numbers = tiny("umup")
    params = init_params(numbers.config, 0, np.float64)
    tokens = TOKENS[0, :, :12]
    cache, parts = Cache(), []
    for piece in np.split(tokens, np.cumsum(pieces)[:-1], axis=1):
        parts.append(forward(params, piece, numbers, cache).data)
    assert np.concatenate(parts, axis=1) == pytest.approx(forward(params, tokens, numbers).data, abs=1e-13)
    assert cache.length == 12


def test_mup_at_its_base_shape_is_sp_with_the_same_attention_factor() -> None:
    sp = tiny("sp")
    mup = tiny("mup", base_width=16, base_layers=2, alpha_attn_softmax=sqrt(8))  # √K/K is 1/√K
    params = init_params(sp.config, 0, np.float64)
    assert all(np.array_equal(w, params[name]) for name, w in init_params(mup.config, 0, np.float64).items())
    expected = forward(params, TOKENS[0], sp).data
    assert forward(params, TOKENS[0], mup).data == pytest.approx(expected, rel=1e-12)


def test_initial_weights_have_the_std_of_the_table_and_depend_on_the_seed_and_name_alone() -> None:
    wide = replace(TINY, width=256)
    params = init_params(wide, 0)
    for name, w in weights(wide).items():
        assert params[name].shape == w.shape
        assert abs(params[name].std() / w.init_std - 1) < 0.05  # at least 19 · 256 draws: 1 % apart, five times
    assert np.array_equal(init_params(replace(wide, layers=1), 0)["head"], params["head"])
    assert not np.array_equal(params["layer0.q"], params["layer0.k"])
    assert not np.array_equal(init_params(wide, 1)["head"], params["head"])


def test_params_as_arrays_keep_no_tape() -> None:
    out = forward(init_params(TINY, 0), TOKENS[0], plan(TINY, 36))
    assert out.constant
    assert out.inputs == ()


def test_tokens_need_a_batch_axis() -> None:
    with pytest.raises(ValueError, match=r"forward: tokens have shape \(5,\); need \(B, T\)"):
        forward(init_params(TINY, 0), np.arange(5), plan(TINY, 5))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_forward_pass_does_not_depend_on_the_size_of_the_batch_it_is_planned_for(scheme: str) -> None:
    numbers = tiny(scheme)
    one, many = (plan(numbers.config, batch_tokens) for batch_tokens in (1, 10_000))
    params, tokens = init_params(numbers.config, 0), TOKENS[0]
    assert np.array_equal(forward(params, tokens, one).data, forward(params, tokens, many).data)
    pair = tokens[:, :-1], tokens[:, 1:]
    assert loss(params, *pair, one).data == loss(params, *pair, many).data


@pytest.mark.parametrize("logits", [1, 19 * 5, 19 * 36, 1 << 23])  # one token at a time, 5 and a rest of 1, all twice
@pytest.mark.parametrize("scheme", SCHEMES)
def test_evaluate_is_the_loss_however_the_tokens_are_cut(
    scheme: str, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "LOGITS", logits)
    numbers = tiny(scheme, **{"alpha_loss_softmax": 1.5} if scheme != "sp" else {})
    params, batch = init_params(numbers.config, 0, np.float64), TOKENS[0]
    pair = batch[:, :-1], batch[:, 1:]
    found = evaluate(params, *pair, numbers)
    assert type(found) is float
    assert found == pytest.approx(float(loss(params, *pair, numbers).data), rel=1e-14)  # sums in another order
    assert evaluate(params, *pair, numbers.weighted(0.25)) == found  # a weight is a matter of gradients


def test_evaluate_never_holds_the_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    V, N = 8_192, 4 * 64
    monkeypatch.setattr(model, "LOGITS", 8 * V)
    numbers = plan(ModelConfig(width=16, layers=1, head_dim=8, vocab_size=V), N)
    params, ids = init_params(numbers.config), np.random.default_rng(0).integers(V, size=(2, 4, 64))
    evaluate(params, *ids, numbers)  # what a first call keeps, as the angles of RoPE, is not of interest
    tracemalloc.start()
    try:
        evaluate(params, *ids, numbers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 8 tokens' logits and what is made of them, against those of 256; the trunk's arrays are small
    assert peak < 4 * N * V / 4, f"{peak:,} bytes, where all logits have {4 * N * V:,}"


@pytest.mark.parametrize("fp8", ["none", "fp8"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_loss_is_the_cross_entropy_of_the_logits(scheme: str, fp8: str) -> None:
    """The head and its loss are one op; apart they have the same value and the same gradients, to the bit."""
    numbers = tiny(scheme, fp8=fp8, **{"alpha_loss_softmax": 1.5} if scheme != "sp" else {}).weighted(0.25)
    batch, found = TOKENS[0], []
    tokens, targets = batch[:, :-1], batch[:, 1:]
    for at_once in (True, False):
        leaves = {name: Tensor(w, name) for name, w in init_params(numbers.config, 0).items()}
        if at_once:
            out = loss(leaves, tokens, targets, numbers)
        else:
            logits, alpha = forward(leaves, tokens, numbers), numbers.config.alpha_loss_softmax
            out = ops.cross_entropy(logits, targets, alpha=alpha, scale=numbers.loss)
        backpropagate(out)
        found.append([out.data, *(t.grad for t in leaves.values())])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
