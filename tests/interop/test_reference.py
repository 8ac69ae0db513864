"""Right candidates pass, wrong ones do not, and the cause is named: in NumPy, PyTorch where it is, the fused pairs."""

import json

import cupy_double
import numpy as np
import pytest
from candidates import FUNCTIONS, MISTAKES, OPS, candidate

import microumup
from microumup import fused, ops
from microumup.backend import to_device
from microumup.config import TrainConfig
from microumup.engine import Tensor, backpropagate, using
from microumup.fp8 import FORMATS, LinearFormats, quantize
from microumup.interop import doctor, reference
from microumup.interop.cases import PAIRS, all_cases, model_config
from microumup.model import forward, init_params, loss
from microumup.optim import adamw
from microumup.plan import plan

CONFIG = model_config("umup")


def causes(text: str) -> list[str]:
    return [line.split("likely cause: ")[1] for line in text.splitlines() if "likely cause: " in line]


# ---------------------------------------------------------------------------------------------------------------------
# What is right


def test_it_is_the_package_s_own() -> None:
    assert microumup.reference is reference
    with pytest.raises(AttributeError, match="no attribute 'referee'"):
        _ = microumup.referee


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("op", [*OPS, *FUNCTIONS])
def test_code_written_by_another_hand_passes(op: str, dtype: str) -> None:
    """Sums in another order, einsum for matmul, exp for tanh."""
    assert "WRONG" not in reference.check(op, *candidate(op), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("op", [op.__name__ for op in fused.KERNELS])
def test_the_fused_pairs_pass(op: str, dtype: str) -> None:
    pair = {o.__name__: pair for o, pair in fused.KERNELS.items()}[op]
    assert "WRONG" not in reference.check(op, *pair, dtype=dtype)


@pytest.mark.parametrize("scheme", ["umup", "umup-iclr"])
@pytest.mark.parametrize("op", PAIRS)
def test_our_own_pairs_pass(op: str, scheme: str) -> None:
    assert "WRONG" not in reference.check(op, *PAIRS[op], scheme=scheme)


def test_a_candidate_that_computes_in_float32_is_judged_as_such() -> None:
    def forward(x, w):  # whatever it is given
        y, saved = candidate("linear")[0](x.astype(np.float32), w.astype(np.float32))
        return y.astype(np.float32), saved

    def backward(dy, saved):
        return tuple(g.astype(np.float32) for g in candidate("linear")[1](dy.astype(np.float32), saved))

    assert "WRONG" not in reference.check("linear", forward, backward)


def test_settings_are_given_to_parameters_of_any_kind() -> None:
    def silu(x, gate, alpha=1.0):
        y, _ = candidate("gated_silu")[0](x, gate, alpha=alpha)
        return y

    assert "WRONG" not in reference.check("gated_silu", silu)
    assert "WRONG" not in reference.check("rms_norm", lambda x, eps: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps))


def test_without_a_backward_numpy_is_asked_for_y_alone() -> None:
    text = reference.check("linear", lambda x, w: x @ w.T * w.shape[1] ** -0.5)
    assert "3 right" in text  # one output for each of the three cases

    def residual(x, w, branch, branches, alpha_res, alpha_res_attn_ratio):
        settings = {"alpha_res": alpha_res, "alpha_res_attn_ratio": alpha_res_attn_ratio}
        return candidate("residual")[0](x, w, branch=branch, branches=branches, **settings)[0]

    assert "3 right" in reference.check("residual", residual)


# ---------------------------------------------------------------------------------------------------------------------
# What is not


@pytest.mark.parametrize(("op", "mistake", "cause"), MISTAKES, ids=[f"{op}-{but}" for op, but, _ in MISTAKES])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_seeded_mistake_is_rejected_and_its_cause_named_first(op: str, mistake: str, cause: str) -> None:
    with pytest.raises(AssertionError, match="not as u-µP has it") as error:
        reference.check(op, *candidate(op, mistake))
    assert (cause or "none of those known") in causes(str(error.value))[0]


def test_the_seeded_mistakes_are_many() -> None:
    """The issue asks for 25, at least 20 of them with the right cause first: here there are 79 of 80."""
    assert len(MISTAKES) == 80
    assert sum(bool(cause) for *_, cause in MISTAKES) == 79
    assert {op for op, *_ in MISTAKES} == {*OPS, *FUNCTIONS}


@pytest.mark.parametrize(
    ("op", "forward", "backward"),
    [("gated_silu", *candidate("gated_silu", "alpha lost")), ("attention", *candidate("attention", "alpha lost"))],
)
def test_a_missing_alpha_cannot_be_seen_at_alpha_1_and_so_other_alphas_are_tried(op, forward, backward) -> None:
    assert "WRONG" not in reference.check(op, forward, backward, only="*.alpha1.*")
    with pytest.raises(AssertionError):
        reference.check(op, forward, backward)


def test_nan_and_a_wrong_shape_are_named() -> None:
    def forward(x, w):
        y = x @ w.T * w.shape[1] ** -0.5
        y[..., 1] = np.nan
        return y

    with pytest.raises(AssertionError, match=r"y: NaN at \[0, 0, 1\]; 6 of 42 elements are no numbers"):
        reference.check("linear", forward)
    with pytest.raises(AssertionError, match=r"y: shape \(7, 3, 2\), expected \(2, 3, 7\)"):
        reference.check("linear", lambda x, w: (x @ w.T).T)
    with pytest.raises(AssertionError, match="dtype int64, expected float64"):
        reference.check("linear", lambda x, w: (x @ w.T).astype(int))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.check("lineal", abs), "op 'lineal' is unknown; choose from adamw, attention"),
        (lambda: reference.check("linear", abs, scheme="mupp"), "scheme 'mupp' is unknown"),
        (lambda: reference.check("linear", abs, framework="tf"), "framework 'tf' is unknown; choose from numpy, torch"),
        (lambda: reference.check("linear", abs, only="x*"), "no case of linear in umup fits 'x\\*'; there are linear."),
        (
            lambda: reference.check("linear", lambda x, w, *, gain: x),
            "gain: no setting has this name; there are fan",
        ),
        (lambda: reference.check("linear", lambda x, w: (x @ w.T, 1)), "forward returned a tuple; pass backward="),
        (lambda: reference.check("linear", lambda x, w: x @ w.T, lambda dy, s: dy), r"forward returns \(y, saved\)"),
        (
            lambda: reference.check("linear", lambda x, w: (x @ w.T, 1), lambda dy, s: (dy,)),
            "backward returned 1 gradients; return dx, dw",
        ),
        (lambda: reference.check("linear", lambda x, w: "y"), "a result is a str"),
        (
            lambda: reference.check_model(lambda w, i, t: i),
            r"numpy has no autodiff; return \(loss, gradients by name\)",
        ),
    ],
)
def test_a_misuse_is_a_line_that_names_it(call, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def our_model(kernels=None):
    """(loss and gradients, logits) by this package, as a candidate would hand them in."""

    def value(params, tokens, targets):
        leaves = {name: Tensor(w, name) for name, w in params.items()}
        with using(kernels or {}):
            out = loss(leaves, tokens, targets, plan(CONFIG, tokens.size))
        backpropagate(out)
        return out.data, {name: t.grad for name, t in leaves.items()}

    return value, lambda params, tokens: forward(params, tokens, plan(CONFIG, tokens.size)).data


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kernels", [{}, fused.KERNELS], ids=["plain", "fused"])
def test_a_right_model_passes(kernels, dtype: str) -> None:
    value, logits = our_model(kernels)
    assert "18 right" in reference.check_model(value, dtype=dtype, logits=logits)  # loss, logits and 16 gradients


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda g, name: g + np.abs(g) / 10, "none of those known"),
        (lambda g, name: g.T if name == "layer0.up" else g, "grad.layer0.up is transposed"),
        (lambda g, name: -g if name == "head" else g, "grad.head: the sign is wrong"),
        (lambda g, name: g * (11 / 4) ** 0.5 if name == "layer1.up" else g, "a factor √(F/D) too much"),
    ],
)
def test_a_wrong_gradient_of_a_model_is_rejected(change, cause: str) -> None:
    value, _ = our_model()

    def wrong(params, tokens, targets):
        out, grads = value(params, tokens, targets)
        return out, {name: change(g, name) for name, g in grads.items()}

    with pytest.raises(AssertionError) as error:
        reference.check_model(wrong)
    assert any(cause in line for line in causes(str(error.value))), error.value


def test_a_model_of_the_true_gradients_is_told_so() -> None:
    value, _ = our_model()
    constants = next(c for c in all_cases() if c.name == "model.umup.float64").settings["gradient_constants"]

    def plain(params, tokens, targets):
        out, grads = value(params, tokens, targets)
        return out, {name: g / constants[name] for name, g in grads.items()}

    with pytest.raises(AssertionError, match="likely cause: the gradients are those of the mean loss"):
        reference.check_model(plain)


# ---------------------------------------------------------------------------------------------------------------------
# Frameworks


def test_torch_differentiates_by_itself() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def linear(x, w):  # y alone is scaled, so that its gradients are true: not u-µP's dw
        return x @ w.T * w.shape[1] ** -0.5

    with pytest.raises(AssertionError, match=r"likely cause: the true derivative"):
        reference.check("linear", linear, framework="torch")
    assert "WRONG" not in reference.check(
        "rope", lambda x, *, head_dim: torch_rope(torch, x, head_dim), framework="torch"
    )


def torch_rope(torch, x, head_dim):
    frequency = 10_000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(x.shape[1], dtype=torch.float64), frequency)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, head_dim // 2, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(2)


def test_a_framework_that_is_missing_is_named() -> None:
    try:
        import jax  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ValueError, match="framework 'jax' needs jax, which is not installed"):
            reference.check("linear", abs, framework="jax")


def linear_fp8(x, w, *, scale, formats):
    return ops.linear_forward(x, w, scale=scale, fp8=LinearFormats(**{k: FORMATS[f] for k, f in formats.items()}))


def fp8_round(x, *, format):
    return quantize(x, FORMATS[format])


OURS = {**PAIRS, "linear_fp8": (linear_fp8, ops.linear_backward), "fp8_round": (fp8_round,), "adamw": (adamw,)}


@pytest.mark.parametrize("op", OURS)
def test_the_vectors_pass_on_the_double_of_cupy(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy_double.install(monkeypatch)
    ops.turns.cache_clear()
    assert "WRONG" not in reference.check(op, *OURS[op], framework="cupy")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("op", OURS)
def test_the_vectors_pass_on_a_device(op: str, dtype: str) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        if not cupy.cuda.runtime.getDeviceCount():
            pytest.skip("CuPy finds no GPU")
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"CuPy finds no usable driver: {error}")
    assert "WRONG" not in reference.check(op, *OURS[op], framework="cupy", dtype=dtype)


def test_a_model_on_the_double_of_cupy_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy_double.install(monkeypatch)
    value, logits = our_model()
    assert "18 right" in reference.check_model(value, logits=logits, framework="cupy")
    assert type(to_device(np.ones(2), "gpu")) is cupy_double.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# A PyTorch program's groups


def torch_program(torch, rates, **settings):
    """A model of linears and an optimizer with a group for each, at unit init."""
    config = TrainConfig(width=16, layers=2, head_dim=4, vocab_size=64)
    params = init_params(config)
    model = torch.nn.ParameterDict({name.replace(".", "_"): torch.tensor(w) for name, w in params.items()})
    groups = [{"params": [model[name.replace(".", "_")]], "lr": config.eta * rates(name, w)}
              for name, w in plan(config, 64).weights.items()]  # fmt: skip
    for group in groups:
        group["weight_decay"] = config.weight_decay / group["lr"]
    return config, model, torch.optim.AdamW(groups, **settings)


def test_groups_of_a_torch_program_are_found_right_and_wrong() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    config, model, optimizer = torch_program(torch, lambda name, w: w.C)
    groups = json.loads(json.dumps(reference.groups_of(optimizer, model)))
    assert doctor.examine(config, groups) == []
    config, model, optimizer = torch_program(torch, lambda name, w: 1 / 16 if w.type == "hidden" else w.C)
    found = doctor.examine(config, reference.groups_of(optimizer, model))
    assert {s.number for s in found} == {"lr"}
    assert all("hidden LR" in s.rule for s in found)
