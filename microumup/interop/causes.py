"""Likely causes of a failure: wrong ways to compute a case, tried until one gives what was received.

A cause is a few words and what the outputs would be. Three kinds, from the most special to the most general:

    another way    the op run with something changed: a setting, a formula, a whole mistake of the zoo (`ways.py`)
    an order       the right numbers along other axes
    a factor       the right array times a constant, which is looked up among the powers of fan_in, b, V, α, …

A cause explains a failure when it gives that output; one that also gives all other outputs of the case goes first.
"""

from collections.abc import Callable, Iterator
from math import isclose, log, sqrt

import numpy as np

from microumup.backend import Array
from microumup.config import ModelConfig
from microumup.interop.cases import Arrays, Case
from microumup.interop.factor_names import name_factor
from microumup.interop.fp8_ways import FP8_WAYS
from microumup.interop.ways import FACTORS_ASTRAY, WAYS, Try, Way, of_models
from microumup.plan import weights

Same = Callable[..., bool]
FP8 = ("fp8_decode", "fp8_round")
TRIED = 1e4  # times the tolerance: a way is often run with less care than what it stands for, as by differences
LARGEST = 1 << 22  # elements of an input: what is larger was not written by us, and nothing is tried on it


@np.errstate(all="ignore")  # what a candidate puts out may be of any size
def causes(case: Case, true: Arrays, received: Arrays, failed: list[str], same: Same) -> dict[str, list[str]]:
    """Words of all causes that explain each of the outputs `failed`, those first that explain the whole case."""
    found: dict[str, list[str]] = {name: [] for name in failed}
    usable = {name: a for name, a in received.items() if name in true and a.dtype.kind == "f"}
    comparable = {name: a for name, a in usable.items() if case.op in FP8 or np.isfinite(a).all()}
    whole: dict[str, list[str]] = {name: [] for name in failed}
    later = {name for name in true if name.startswith(("losses", "trained."))} if case.op.startswith("model") else set()
    if set(failed) - later:  # wrong in the first batch already, and what follows from it need not be tried
        comparable = {name: a for name, a in comparable.items() if name not in later}
        trial = Try(without_training(case))
    else:
        trial = Try(case)
    small = sum(a.size for a in case.inputs.values()) <= LARGEST
    for words, way in alternatives(case) if small else ():
        try:
            given = {name: a.astype(true[name].dtype) for name, a in way(trial).items() if name in true}
        except (ValueError, ArithmeticError, LookupError):
            continue  # it cannot be made here, so it was not
        agrees = {name for name, a in comparable.items() if name in given and same(case, name, a, given[name], TRIED)}
        for name in agrees & set(failed):
            if not same(case, name, true[name], given[name]):
                (whole if agrees >= set(comparable) else found)[name].append(words)
    for name in failed:
        if name in comparable:
            found[name] = [
                *orders(case, name, true, received[name], same),
                *factors(case, name, true[name], received[name], same),
                *found[name],
            ]
            if not whole[name] + found[name]:
                found[name] = precision(case, name, true[name], received[name])
    return {name: whole[name] + found[name] for name in failed}


def alternatives(case: Case) -> Iterator[tuple[str, Way]]:
    """Words, and the way: the special ones before the general."""
    op = {"attention_cached": "attention", "rope_offset": "rope", "model_fp8": "model"}.get(case.op, case.op)
    yield from (WAYS | FP8_WAYS).get(op, ())
    if case.settings.get("scale", {}).get("y", 1.0) != 1.0:
        yield from FACTORS_ASTRAY
    if op in ("plan", "model"):
        yield from of_models(case)


def without_training(case: Case) -> Case:
    """The case with the first batch alone, if it is a model."""
    first = {name: case.inputs[name][:1] for name in ("tokens", "targets") if case.op.startswith("model")}
    return case._replace(inputs=case.inputs | first)


def orders(case: Case, output: str, outputs: Arrays, received: Array, same: Same) -> list[str]:
    """The right numbers along other axes, or another output's."""
    true = outputs[output]
    for other, array in outputs.items():
        if other != output and same(case, output, received, array) and not same(case, output, true, array):
            return [f"{min(output, other)} and {max(output, other)} are swapped"]
    if true.ndim >= 2 and received.ndim == true.ndim and same(case, output, received.swapaxes(-1, -2), true):
        return [f"{output} is transposed"]
    reshaped = received.size == true.size and received.shape != true.shape
    wrong_shape = reshaped and same(case, output, received.reshape(true.shape), true)
    return [f"{output} has the right numbers in the wrong shape"] * wrong_shape


def precision(case: Case, output: str, true: Array, received: Array) -> list[str]:
    """Right, but not to float64's precision."""
    if received.shape != true.shape or true.dtype != np.float64 or case.op == "plan":
        return []
    rms = np.sqrt(np.mean(true * true))
    close = bool((np.abs(received - true) <= 1e-5 * rms).all())
    return ["right to float32's precision: something on the way is not float64"] * close


def factors(case: Case, output: str, true: Array, received: Array, same: Same) -> list[str]:
    """Words for the constant that `received` is off by; none where it is no constant."""
    if received.shape != true.shape or case.op in FP8:
        return []
    if case.op == "plan":
        return of_plan(case, output, true, received)
    e, r = (a.astype(np.float64).ravel() for a in (true, received))
    if not np.isfinite(r).all() or not e @ e or not r @ e or not same(case, output, e * ((r @ e) / (e @ e)), r):
        return []
    ratio = float((r @ e) / (e @ e))
    value, name = right_factor(case, output)
    words = [f"{output}: {w}" for w in name_factor(ratio * value, value, name, symbols(case))]
    return words or [f"{output} is a constant times what it should be, of no known name"] * (true.size > 1)


def of_plan(case: Case, output: str, true: Array, received: Array) -> list[str]:
    """Words for what all wrong numbers in a column of a Plan are off by, each by sizes of its own weight."""
    config, common = ModelConfig(**case.settings["config"]), None
    table = list(weights(config).values())
    if output == "A_backward":
        table = table[1:]  # the embedding has none
    for i in np.flatnonzero(~np.isclose(received, true, rtol=1e-9, atol=0)):
        w = table[i] if len(table) == len(true) else None
        fans = (w.shape if w.type == "input" else w.shape[::-1]) if w else (1, 1)
        values = {"fan_in": fans[0], "fan_out": fans[1], "L": config.branches, "b": case.settings["batch_tokens"]}
        values = {key: float(v) for key, v in values.items() if v != 1} | {"2": 2.0}
        words = name_factor(float(received[i]), float(true[i]), "1", values)
        common = words if common is None else [word for word in common if word in words]
    return [f"{output}: {word}" for word in common or []]


def symbols(case: Case) -> dict[str, float]:
    """Numbers that a factor of the case might be made of, by the names that the paper has."""
    s, shape = case.settings, {name: a.shape for name, a in case.inputs.items()}
    found = {
        "fan_in": s.get("fan_in"), "fan_out": s.get("fan_out"), "b": s.get("batch_tokens"), "V": s.get("vocab_size"),
        "K": s.get("head_dim"), "s": s.get("seq_len"), "α": s.get("alpha"),
    }  # fmt: skip
    first = next(iter(shape.values()), ())
    if len(first) == 3 or case.op == "embedding":
        found["(number of sequences)"] = first[0]
        found["(length of the input)"] = first[1]
    if case.op in ("rms_norm", "rope", "attention", "residual"):
        found["D"] = first[-1]
    if V := s.get("vocab_size"):
        found["V/√(V-1)"] = V / sqrt(V - 1)
        found["√(V-1)"] = sqrt(V - 1)
    if case.op in ("linear", "readout", "embedding", "linear_fp8"):
        found |= {"(V/b)": V / s["batch_tokens"]} if V else {}
    if scale := s.get("scale"):
        sigma = scale.get("y")
        found["1/σ"] = sigma if case.op in ("attention", "gated_silu") else None
        found["a"], found["1/b of the residual"] = scale.get("a"), scale.get("b") and 1 / scale["b"]
    if config := s.get("config"):
        D, V = config["width"], config["vocab_size"]
        found |= {"(F/D)": 11 / 4, "D": D, "V": V, "V/√(V-1)": V / sqrt(V - 1), "L": 2 * config["layers"]}
    found["ln 2"] = log(2)
    return {name: float(v) for name, v in found.items() if v and not isclose(v, 1)}


def right_factor(case: Case, output: str) -> tuple[float, str]:
    """The factor that an output should have, and its name; 1 where it has none, or no single one."""
    scale = case.settings.get("scale", {})
    kind = "y" if output == "y" else "dw" if output == "dw" else "dx"
    if case.op in ("linear", "linear_fp8"):
        return scale[kind], "b^-1/2" if kind == "dw" else "fan_in^-1/2"
    if case.op == "readout":
        names = {
            "y": "1/fan_in",
            "dx": "fan_out^-1/2" if case.schemes == ("umup-iclr",) else "fan_in^-1/2",
            "dw": "b^-1/2",
        }
        return scale[kind], names[kind]
    if case.op == "embedding" and kind == "dw":
        return scale["dw"], "√(V/b)"
    if case.op in ("attention", "attention_cached", "gated_silu"):
        return scale[kind], "1/σ"
    if case.op == "cross_entropy" and kind == "dx":
        return scale["dx"] * case.settings["alpha"] / case.settings["batch_tokens"], "V/√(V-1)"
    return 1.0, "1"
