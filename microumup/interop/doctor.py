"""The doctor: someone's parameter groups held against Tables 1-3, and which rule is broken where they differ.

    {"groups": [{"name": "blocks.0.attn.wq", "shape": [256, 256], "type": "hidden", "init_std": 1.0,
                 "multiplier": 0.0625, "lr": 0.03, "eps": 1e-8, "weight_decay": 0.0001}, …],
     "decay_times_lr": true, "eta": 1.5}

Shapes are as stored, (fan_out, fan_in), an embedding's (V, D). Everything but name and shape may be left out, and is
then not judged; without a type the name decides (emb…, …head or readout, else hidden). `decay_times_lr` says that the
optimizer multiplies weight_decay by lr, as PyTorch's AdamW does. `eta` is η where it is not --lr. No tensor is needed.
"""

import re
from collections import Counter
from collections.abc import Iterator
from math import isclose, isfinite, prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

from microumup.config import TrainConfig
from microumup.files import read_json
from microumup.interop.factor_names import name_factor
from microumup.lab.tables import text_table
from microumup.multipliers import Plain
from microumup.parametrization import Shape, Weight, weight

MOST_GROUPS = 100_000
EXACT = 6e-3  # relative: numbers that were worked out, and maybe printed with three digits, as explain does


class Symptom(NamedTuple):
    """A number of a group that is not what the Plan has."""

    name: str
    number: str  # of the group: lr, init_std, multiplier, …
    expected: float
    given: float
    rule: str  # which is broken, in words


def read_groups(path: Path) -> dict[str, Any]:
    """The groups of a file. Raises ValueError, in one line, for what is no such file."""
    try:
        found = read_json(path, dict)
    except ValueError as error:
        raise ValueError(f"--against: {error}") from None
    groups = found.get("groups")
    if not isinstance(groups, list) or not 0 < len(groups) <= MOST_GROUPS:
        raise ValueError(f"--against: {path} has no list of groups; reference.groups_of writes one")
    eta = found.get("eta", 1.0)
    if type(eta) not in (int, float) or not 0 < eta < float("inf"):
        raise ValueError(f"--against: eta is {eta!r} in {path}, not a positive finite number")
    for i, g in enumerate(groups):
        shape = g.get("shape") if isinstance(g, dict) else None
        if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 2**40 for n in shape):
            raise ValueError(f"--against: group {i} of {path} has no shape, a list of whole numbers")
        if not isinstance(g.get("name"), str):
            raise ValueError(f"--against: group {i} of {path} has no name")
        if g.get("type") not in (None, "input", "hidden", "output"):
            raise ValueError(f"--against: {g['name'][:80]!r}: type {g['type']!r} is not one of input, hidden, output")
        for number in ("init_std", "multiplier", "multiplier_backward", "lr", "eps", "weight_decay"):
            value = g.get(number)
            if value is not None and not (type(value) in (int, float) and isfinite(value) and value >= 0):
                raise ValueError(
                    f"--against: {g['name'][:80]!r}: {number} is {value!r}, not a finite number of at least 0"
                )
    return found


def kind_of(group: dict[str, Any]) -> str:
    """input, hidden or output: what the group says, or what its name looks like."""
    name = group["name"].lower()
    if group.get("type"):
        return str(group["type"])
    if re.search(r"emb|wte|tok", name) and "unemb" not in name:
        return "input"
    return "output" if re.search(r"head|readout|unemb|output_proj|projection\.weight$", name) else "hidden"


def examine(config: TrainConfig, file: dict[str, Any]) -> list[Symptom]:
    """Every number of the groups that the scheme of `config` has otherwise. Sizes are those of the groups' shapes;
    depth and hyperparameters are the config's."""
    found: list[Symptom] = []
    groups = [g for g in file["groups"] if len(g["shape"]) == 2]
    eta = file.get("eta", config.eta)
    if groups and not any(kind_of(g) == "output" for g in groups):
        rule = "there is no output weight: add the head's; one tied to the embedding breaks Table 1, where they differ"
        found.append(Symptom("(all)", "type", 1.0, 0.0, rule))
    rates = [g["lr"] / (eta * expected(config, g)[0].C) for g in groups if g.get("lr") is not None]
    alike = len(rates) > 1 and all(r > 0 and isclose(r, rates[0], rel_tol=EXACT) for r in rates)
    if alike and not isclose(rates[0], 1, rel_tol=EXACT):
        rule = "every learning rate is off by one factor: only η differs; say --lr"
        found.append(Symptom("(all)", "eta", eta, eta * rates[0], rule))
        eta *= rates[0]
    for g in groups:
        found += _symptoms(config, g, eta, times_lr=bool(file.get("decay_times_lr")))
    return found


def expected(config: TrainConfig, group: dict[str, Any]) -> tuple[Weight, Shape]:
    """The scheme's rules for a weight of this type and shape, and what they are made of."""
    kind, c = kind_of(group), config
    fan_out, fan_in = group["shape"] if kind != "input" else group["shape"][::-1]
    base = fan_in if kind == "input" else fan_in * c.base_width / c.width
    in_branch = bool(group.get("in_branch", kind == "hidden"))
    shape = Shape(fan_in, fan_out, base, c.branches, 2 * c.base_layers, in_branch, c.sigma_init, c.alpha_emb, c.eta_emb)
    w = weight(c.rules, kind, shape)
    return w._replace(C=1.0) if c.optimizer == "sgd" else w, shape  # the C are Adam's


def _symptoms(config: TrainConfig, g: dict[str, Any], eta: float, *, times_lr: bool) -> Iterator[Symptom]:
    w, shape = expected(config, g)
    name, lr, std, A = g["name"], g.get("lr"), g.get("init_std"), g.get("multiplier")
    sample = 5 / sqrt(2 * prod(g["shape"]))  # of a measured std: five of its standard errors
    if lr is not None and std is not None and A is not None and not isclose(std, w.init_std, rel_tol=sample + EXACT):
        same = isclose(A * std, w.A * w.init_std, rel_tol=sample) and isclose(A * lr, w.A * eta * w.C, rel_tol=EXACT)
        if same:  # Adam does not see it: the effective matrix starts and moves alike
            rule = "moved along the abc-symmetry: the same training with Adam, but not at unit scale, as FP8 needs it"
            yield Symptom(name, "init_std", w.init_std, std, rule)
            return
    if std is not None and not isclose(std, w.init_std, rel_tol=sample + EXACT):
        yield Symptom(name, "init_std", w.init_std, std, _cell(w, shape, "init std", std, w.init_std, sample + EXACT))
    if A is not None and not isclose(A, w.A, rel_tol=EXACT):
        yield Symptom(name, "multiplier", w.A, A, _cell(w, shape, "multiplier", A, w.A))
    back = g.get("multiplier_backward")
    if back is not None and not isclose(back, w.A_backward, rel_tol=EXACT):
        rule = _cell(w, shape, "backward multiplier", back, w.A_backward)
        yield Symptom(name, "multiplier_backward", w.A_backward, back, rule)
    if lr is not None and not isclose(lr, eta * w.C, rel_tol=EXACT):
        yield Symptom(name, "lr", eta * w.C, lr, _learning_rate(config, w, shape, lr / eta))
    decay = g.get("weight_decay")
    if decay is not None and lr:
        taken, right = decay * (lr if times_lr else 1.0), config.weight_decay
        if config.decay == "independent" and not isclose(taken, right, rel_tol=EXACT):
            yield Symptom(name, "weight_decay", right / (lr if times_lr else 1.0), decay, _decay(taken, right, lr))
    if (eps := g.get("eps")) is not None and eps > 1e-7:
        rule = "Adam's ε is so large that it sees the constants of the gradients (Table 6: 1e-8)"
        yield Symptom(name, "eps", 1e-8, eps, rule)


def _decay(taken: float, right: float, lr: float) -> str:
    if not taken:
        return "there is no weight decay"
    if isclose(taken, right * lr, rel_tol=EXACT):
        return "decay is multiplied by LR: it is independent (Table 6); pass λ/lr where the optimizer multiplies"
    if isclose(taken * lr, right, rel_tol=EXACT):
        return "decay is divided by LR, and the optimizer does not multiply it: pass λ"
    return f"λ is another: a step takes {taken:.3g} of the weight"


def _cells(shape: Shape) -> dict[str, tuple[float, str]]:
    """Rules in the cells of Tables 1-3, by how it is written, and where else it is right."""
    n, m, base = shape.fan_in, shape.fan_out, shape.base_fan_in
    return {
        "1": (1.0, "sp's"), "fan_in^-1/2": (n**-0.5, ""), "1/fan_in": (1 / n, "µP's"), "fan_out^-1/2": (m**-0.5, ""),
        "1/fan_out": (1 / m, ""), "base/fan_in": (base / n, "µP's"), "base^-1/2": (base**-0.5, "µP's"),
        "base fan_in^-1/2": (base * n**-0.5, "Table 2's"), "base^1/2/fan_in": (base**0.5 / n, "Table 2's"),
        "base^1/2": (base**0.5, "Table 2's"),
    }  # fmt: skip


def _cell(w: Weight, shape: Shape, what: str, given: float, right: float, tolerance: float = EXACT) -> str:
    """Words for a number that stands in another cell of the tables."""
    cells = _cells(shape)
    name = next((key for key, (v, _) in cells.items() if isclose(v, right, rel_tol=1e-9)), "what Tables 1-3 have")
    swapped = shape._replace(fan_in=shape.fan_out, fan_out=shape.fan_in)
    if name in ("fan_in^-1/2", "1/fan_in") and isclose(given, _cells(swapped)[name][0], rel_tol=tolerance):
        return f"{w.type} {what} is {name.replace('fan_in', 'fan_out')}, not {name}: fan_in and fan_out are swapped"
    for key, (value, whose) in cells.items():
        if isclose(given, value, rel_tol=tolerance):
            if key == "1":
                return f"{w.type} {what} is 1: {name} is missing"
            return f"{w.type} {what} is {key}{f', {whose}' if whose else ''}, not {name}"
    words = name_factor(given, right, name, _values(shape), EXACT) if tolerance <= EXACT else []
    return f"{w.type} {what}: {words[0]}" if words else f"{w.type} {what} is {given:.4g}, not {name}"


def _values(shape: Shape) -> dict[str, float]:
    values = {
        "fan_in": shape.fan_in, "fan_out": shape.fan_out, "base width": shape.base_fan_in, "L": shape.depth,
        "σ_init": shape.sigma_init, "η̂_emb": shape.eta_emb,
    }  # fmt: skip
    return {key: float(v) for key, v in values.items() if not isclose(v, 1)}


def _learning_rate(config: TrainConfig, w: Weight, shape: Shape, given: float) -> str:
    """Words for a C that is another: the cell of its type, times the part of the residual column."""
    type, depth = w.type, config.rules.residual.C(shape) if shape.in_branch else 1.0
    emb = shape.eta_emb if type == "input" else 1.0
    right = w.C / depth / emb
    cells = _cells(shape)
    name = next((key for key, (v, _) in cells.items() if isclose(v, right, rel_tol=1e-9)), "what Tables 1-3 have")
    unit_scaled = "u-µP" if config.rules.factors is not Plain else config.scheme
    parts = {"": depth}
    if depth != 1:
        parts |= {"L^-1/2 of residual branches is missing": 1.0}
        parts |= {"L counts layers": (shape.depth / 2) ** -0.5, "L counts branches": shape.depth**-0.5}
    elif not shape.in_branch:
        parts |= {"L^-1/2, of residual branches, does not belong to it": shape.depth**-0.5}
    if isclose(given, right * depth, rel_tol=EXACT):
        return "η̂_emb is missing"
    for key, (value, whose) in [(name, (right, "")), *cells.items()]:
        for words, part in parts.items():
            if not isclose(given, value * part * emb, rel_tol=EXACT):
                continue
            if key == name:
                return f"{type} LR: {words} (Table 1)"
            swapped = {"fan_in^-1/2": "fan_out^-1/2", "fan_out^-1/2": "fan_in^-1/2"}.get(name) == key
            about = f"{whose or 'no scheme has it'}, not {unit_scaled}'s {name}"
            about = "fan_in and fan_out are swapped" if swapped else about
            if key == "1" and type == "input":
                about = f"without the embedding rule {name} of App. A.3"
            return f"{type} LR is {key}: {about}" + (f"; {words}" if words else "")
    words_ = name_factor(given, w.C, name, _values(shape), EXACT)
    return f"{type} LR: {words_[0]}" if words_ else f"{type} LR is {given:.4g} η, not {w.C:.4g} η"


def report(config: TrainConfig, file: dict[str, Any], symptoms: list[Symptom]) -> str:
    """A line for every number that is off, then the broken rules, the most frequent first."""
    judged = [g for g in file["groups"] if len(g["shape"]) == 2]
    lines = [f"{len(judged)} weights held against {config.scheme}, {config.layers} layers of width {config.width}"]
    if others := [g["name"] for g in file["groups"] if len(g["shape"]) != 2]:
        names = ", ".join(others[:5]) + " …" * (len(others) > 5)
        lines.append(f"not judged, the paper has no rule for gains and biases: {names}")
    if not symptoms:
        return "\n".join([*lines, "every number is as it should be"])
    rows = [(s.name, s.number, f"{s.expected:.4g}", f"{s.given:.4g}", s.rule) for s in symptoms[:60]]
    lines += ["", text_table([("weight", "number", "expected", "given", "rule that is broken"), *rows], "<<>><")]
    if len(symptoms) > 60:
        lines.append(f"and {len(symptoms) - 60} more")
    counts = Counter(s.rule for s in symptoms).most_common()
    rules = [f"  {rule} ({count} of {len(judged)} weights)" for rule, count in counts]
    return "\n".join([*lines, "", "broken rules:", *rules])
