"""Check an implementation of u-µP from Python: of an op, of a model; write down a PyTorch optimizer's groups.

    from microumup import reference
    reference.check("linear", my_linear, framework="torch")

The cases are those of the golden vectors. A candidate takes arrays of its framework by position, and by keyword those
settings of the case that it has parameters for: alpha, head_dim, seq_len, scale, … Its gradients are its backward's,
`backward(dy, saved)` after `forward` returned (y, saved), or else those of its framework's autodiff. What is wrong is
an AssertionError with a table: where, expected, received, the likely cause.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from inspect import signature
from typing import Any, NamedTuple

import numpy as np

from microumup.backend import Array, choose_device, to_device, to_host
from microumup.interop.cases import PAIRS, Arrays, Case, all_cases, keywords
from microumup.interop.judge import Finding, explained, judge, table

DIFFERENTIATED = {*PAIRS, "residual", "linear_fp8"}  # ops with gradients; the others put out all that they have


class Framework(NamedTuple):
    """Ways of arrays into a framework and out of it, and of its differentiation."""

    put: Callable[[Array], Any]
    get: Callable[[Any], Array]
    gradients: Callable[[Callable[..., Any], Sequence[Any], Sequence[int], Any], tuple[Any, Sequence[Any]]] | None


def check(
    op: str, forward: Callable[..., Any], backward: Callable[..., Any] | None = None, *, framework: str = "numpy",
    scheme: str = "umup", dtype: str = "float64", only: str = "*",
) -> str:  # fmt: skip
    """Hold a candidate for `op` against every case of it in `scheme`; the table of what is right.

    Without a backward, gradients are those of the framework (numpy and cupy have none: then y alone is looked at).
    `dtype` is that of the inputs; results in float32 are judged as such. `only` is a pattern of case names. Raises
    AssertionError for what is wrong, and ValueError for an unknown op, scheme or framework, or a candidate that needs
    an argument that no setting has.
    """
    cases, of = _cases(op, scheme, dtype, only), _framework(framework)
    received = {case.name: _outputs(case, forward, backward, of) for case in cases}
    outputs = ("y",) if op in DIFFERENTIATED and not (backward or of.gradients) else ()
    return _verdict(cases, received, outputs)


def check_model(
    loss: Callable[..., Any], *, framework: str = "numpy", scheme: str = "umup", dtype: str = "float64",
    logits: Callable[..., Any] | None = None, fp8: bool = False,
) -> str:  # fmt: skip
    """Hold a whole model against ours: its loss, all of its gradients and, if given, its logits. The table.

    loss(params, tokens, targets) -> the loss, a scalar to differentiate, or (loss, gradients) where the framework
    cannot; params and gradients are arrays by our names, embedding, layer0.q, …, head. logits(params, tokens) ->
    (B, T, V). A parameter named `config` of either gets the sizes and α's. Raises as `check` does.
    """
    (case,) = _cases("model_fp8" if fp8 else "model", scheme, "float32" if fp8 else dtype, "*")
    of, config = _framework(framework), case.settings["config"]
    names = [name.removeprefix("w.") for name in case.inputs if name.startswith("w.")]
    weights = [of.put(case.inputs[f"w.{name}"]) for name in names]
    tokens, targets = (of.put(case.inputs[name][0]) for name in ("tokens", "targets"))

    def call(function: Callable[..., Any], weights: Sequence[Any], *ids: Any) -> Any:
        more = {"config": config} if "config" in signature(function).parameters else {}
        return function(dict(zip(names, weights, strict=True)), *ids, **more)

    if of.gradients:
        value, grads = of.gradients(lambda *w: call(loss, w, tokens, targets), weights, range(len(names)), None)
    else:
        result = call(loss, weights, tokens, targets)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise ValueError(f"check_model: {framework} has no autodiff; return (loss, gradients by name)")
        value, grads = result[0], [result[1].get(name) for name in names]
    received = {f"grad.{n}": of.get(g) for n, g in zip(names, grads, strict=True) if g is not None}
    received |= {"loss": of.get(value)} | ({"logits": of.get(call(logits, weights, tokens))} if logits else {})
    outputs = ("logits",) * bool(logits) + ("loss", *(f"grad.{name}" for name in names))
    return _verdict([case], {case.name: received}, outputs)


def _cases(op: str, scheme: str, dtype: str, only: str) -> list[Case]:
    cases = list(all_cases())
    for name, value, known in (
        ("op", op, sorted({case.op for case in cases})),
        ("scheme", scheme, sorted({s for c in cases for s in c.schemes})), ("dtype", dtype, ["float32", "float64"]),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"check: {name} {value!r} is unknown; choose from {', '.join(known)}")
    fit = [case for case in cases if case.op == op and scheme in case.schemes]
    fit = [c for c in fit if c.dtype == dtype or all(other.dtype != dtype for other in fit)]
    if not (found := [case for case in fit if fnmatchcase(case.name, only)]):
        raise ValueError(
            f"check: no case of {op} in {scheme} fits {only!r}; there are {', '.join(c.name for c in fit)}"
        )
    return found


def _outputs(case: Case, forward: Callable[..., Any], backward: Callable[..., Any] | None, of: Framework) -> Arrays:
    """Outputs that a candidate makes of a case, as NumPy arrays by the names of the outputs."""
    settings = keywords(case.settings, forward, sum(name != "dy" for name in case.inputs))
    if case.op not in DIFFERENTIATED:
        y = forward(*(of.put(a) for a in case.inputs.values()), **settings)
        return _named(case, y, of)
    names = [name for name in case.inputs if name != "dy"]
    inputs = [of.put(case.inputs[name]) for name in names]
    floats = [i for i, name in enumerate(names) if case.inputs[name].dtype.kind == "f"]
    dy = of.put(case.inputs["dy"])
    if backward:
        result = forward(*inputs, **settings)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ValueError(f"check: with a backward, forward returns (y, saved); it returned {_kind(result)}")
        y, saved = result
        grads = backward(dy, saved)
        grads = grads if isinstance(grads, tuple | list) else (grads,)
        if len(grads) == len(names) != len(floats):
            grads = [grads[i] for i in floats]
    elif of.gradients:
        y, grads = of.gradients(lambda *given: forward(*given, **settings), inputs, floats, dy)
    else:
        y, grads = forward(*inputs, **settings), [None] * len(floats)
        if isinstance(y, tuple):
            raise ValueError("check: forward returned a tuple; pass backward=, or let forward return y alone")
    if len(grads) != len(floats):
        wanted = ", ".join(f"d{names[i]}" for i in floats)
        raise ValueError(f"check: backward returned {len(grads)} gradients; return {wanted}")
    found = {"y": of.get(y)}
    return found | {f"d{names[i]}": of.get(g) for i, g in zip(floats, grads, strict=True) if g is not None}


def _named(case: Case, y: Any, of: Framework) -> Arrays:
    """Outputs of a candidate that returns all of them: a dict by name, a tuple in order, or the single one."""
    if isinstance(y, dict):
        return {name: of.get(a) for name, a in y.items()}
    names = {
        "adamw": ["new_w", "new_m", "new_v"],
        "fp8_decode": ["value"],
        "fp8_round": ["saturating", "nonsaturating"],
    }
    several = y if isinstance(y, tuple | list) else [y]
    return {name: of.get(a) for name, a in zip(names.get(case.op, []), several, strict=False)}


def _verdict(cases: list[Case], received: dict[str, Arrays], outputs: tuple[str, ...]) -> str:
    findings: list[Finding] = []
    for case in cases:
        wanted = outputs or (tuple(received[case.name]) if case.op == "fp8_round" else ())
        findings += judge(case, received[case.name], wanted, any_float=True)
    text = table(explained(findings, received))
    if not all(f.passed for f in findings):
        raise AssertionError(f"not as u-µP has it:\n{text}")
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Frameworks


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")


def _to_numpy(x: Any) -> Array:
    """x as a NumPy array, by `__array__` or DLPack. Raises ValueError for what has neither."""
    if isinstance(x, np.ndarray | np.generic | float | int):
        return np.asarray(x)
    try:
        return np.asarray(x) if hasattr(x, "__array__") else np.from_dlpack(x)
    except (TypeError, BufferError, RuntimeError, AttributeError) as error:
        raise ValueError(f"check: a result is a {_kind(x)}, which is no array for NumPy ({error})") from None


def _framework(name: str) -> Framework:
    if name not in FRAMEWORKS:
        raise ValueError(f"check: framework {name!r} is unknown; choose from {', '.join(FRAMEWORKS)}")
    try:
        return FRAMEWORKS[name]()
    except ModuleNotFoundError as error:
        raise ValueError(f"check: framework {name!r} needs {error.name}, which is not installed") from None


def _numpy() -> Framework:
    return Framework(lambda a: a.copy(), _to_numpy, None)


def _cupy() -> Framework:
    choose_device("gpu")  # says what is missing, where something is
    return Framework(lambda a: to_device(a, "gpu"), lambda x: np.asarray(to_host(x)), None)


def _torch() -> Framework:
    torch = import_module("torch")

    def put(a: Array) -> Any:
        return torch.tensor(a if a.dtype.kind != "i" else a.astype(np.int64))

    def gradients(f: Callable[..., Any], inputs: Sequence[Any], floats: Sequence[int], dy: Any) -> Any:
        leaves = [x.requires_grad_() if i in floats else x for i, x in enumerate(inputs)]
        y = f(*leaves)
        cotangent = None if dy is None else dy.to(y.dtype)
        return y, torch.autograd.grad(y, [leaves[i] for i in floats], cotangent, allow_unused=True)

    return Framework(put, lambda x: _to_numpy(x.detach().cpu() if hasattr(x, "detach") else x), gradients)


def _jax() -> Framework:
    jax = import_module("jax")

    def gradients(f: Callable[..., Any], inputs: Sequence[Any], floats: Sequence[int], dy: Any) -> Any:
        def of_floats(*given: Any) -> Any:
            new = dict(zip(floats, given, strict=True))
            return f(*(new.get(i, x) for i, x in enumerate(inputs)))

        y, back = jax.vjp(of_floats, *(inputs[i] for i in floats))
        return y, back(jax.numpy.ones_like(y) if dy is None else dy.astype(y.dtype))

    def put(a: Array) -> Any:
        return jax.numpy.asarray(a if a.dtype != np.float64 or jax.config.jax_enable_x64 else a.astype(np.float32))

    return Framework(put, _to_numpy, gradients)


FRAMEWORKS: dict[str, Callable[[], Framework]] = {"numpy": _numpy, "torch": _torch, "jax": _jax, "cupy": _cupy}


# ---------------------------------------------------------------------------------------------------------------------
# For the doctor


def groups_of(optimizer: Any, model: Any) -> dict[str, Any]:
    """The parameter groups of a PyTorch program, as `explain --against` reads them: save it by json.dump.

    init_std is that of the weights as they are now: call it before training. Multipliers lie in the model's code, out
    of sight; add a "multiplier" to a group for the doctor to judge it.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for w in group["params"]:
            std = float(w.detach().std()) if w.numel() > 1 else None
            numbers = {"lr": group["lr"], "eps": group.get("eps"), "weight_decay": group.get("weight_decay", 0.0)}
            groups.append({"name": names[w], "shape": list(w.shape), "init_std": std} | numbers)
    return {"decay_times_lr": True, "groups": groups}  # as torch.optim.AdamW and Adam of weight_decay do
