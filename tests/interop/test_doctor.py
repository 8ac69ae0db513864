"""The doctor names the rule that a program's parameter groups break."""

import json
from math import prod
from pathlib import Path

import pytest
from conftest import Refused

from microumup.config import TrainConfig
from microumup.interop import doctor
from microumup.lab.explain import main
from microumup.lab.mistakes import ZOO, planted
from microumup.optim import DECAYS
from microumup.parametrization import SCHEMES
from microumup.plan import plan

CONFIG = TrainConfig(width=64, layers=3, vocab_size=250)
OPTIONS = ["--width", "64", "--layers", "3", "--vocab-size", "250"]


def groups(config: TrainConfig = CONFIG, mistake: str = "nothing", **changes) -> dict:
    """The groups of a program that does what the Plan says, or makes a mistake of the zoo."""
    with planted(ZOO[mistake]):
        weights = plan(config, 1024).weights
        found = [
            {"name": name, "type": w.type, "shape": list(w.shape), "init_std": w.init_std, "multiplier": w.A,
             "multiplier_backward": w.A_backward, "lr": config.eta * w.C, "eps": 1e-8,
             "weight_decay": DECAYS[config.decay](config.weight_decay, 1.0, config.eta, w.C)}
            for name, w in weights.items()
            if not (mistake == "tied-embeddings" and name == "head")
        ]  # fmt: skip
    for g in found:
        g |= {key: value(g) for key, value in changes.items()}
    return json.loads(json.dumps({"groups": found}))


def rules(file: dict, config: TrainConfig = CONFIG) -> list[str]:
    return list(dict.fromkeys(s.rule for s in doctor.examine(config, file)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_program_that_does_as_the_plan_says_is_well(scheme: str) -> None:
    config = TrainConfig(scheme=scheme, width=64, layers=3, vocab_size=250, eta_emb=0.5)
    assert rules(groups(config), config) == []


def test_numbers_as_explain_prints_them_are_well() -> None:
    """0.0156 for 2^-6 was off by more than was allowed, and got the name of another rule."""
    rounded = {name: lambda g, name=name: float(f"{g[name]:.3g}") for name in ("lr", "multiplier", "weight_decay")}
    assert rules(groups(**rounded)) == []
    assert rules(groups(multiplier=lambda g: 1.02 * g["multiplier"])) != []


SHOWN = {  # the mistakes of the zoo that a file of groups can show, and the words that name the rule
    "hidden-lr-inverse": ["hidden LR is 1/fan_in: µP's, not u-µP's fan_in^-1/2"],
    "hidden-lr-1": ["hidden LR is 1: sp's, not u-µP's fan_in^-1/2"],
    "embedding-lr-1": ["input LR is 1: without the embedding rule fan_out^-1/2 of App. A.3"],
    "branch-lr-1": ["hidden LR: L^-1/2 of residual branches is missing (Table 1)"],
    "fans-swapped": [
        "hidden multiplier is fan_out^-1/2, not fan_in^-1/2: fan_in and fan_out are swapped",
        "hidden LR is fan_out^-1/2: fan_in and fan_out are swapped",
        "output multiplier is 1/fan_out, not 1/fan_in: fan_in and fan_out are swapped",
    ],
    "fans-swapped-lr": [
        "hidden LR is fan_out^-1/2: fan_in and fan_out are swapped",
        "input LR is fan_in^-1/2: fan_in and fan_out are swapped",
    ],
    "readout-1": ["output multiplier is 1: 1/fan_in is missing"],
    "readout-sqrt": ["output multiplier is fan_in^-1/2, not 1/fan_in"],
    "tied-embeddings": ["there is no output weight: add the head's; one tied to the embedding"],
    "coupled-decay": ["decay is multiplied by LR"],
}


@pytest.mark.parametrize("mistake", ZOO)
def test_each_mistake_of_the_zoo_that_groups_show_is_named(mistake: str) -> None:
    found = rules(groups(mistake=mistake))
    assert bool(found) == (mistake in SHOWN)
    for words in SHOWN.get(mistake, []):
        assert any(words in rule for rule in found), found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": lambda g: g["lr"] * 2}, "every learning rate is off by one factor: only η differs"),
        ({"weight_decay": lambda g: 0.0}, "there is no weight decay"),
        ({"weight_decay": lambda g: 0.1}, "λ is another: a step takes 0.1 of the weight"),
        ({"eps": lambda g: 1e-3}, "Adam's ε is so large"),
        ({"init_std": lambda g: g["shape"][1] ** -0.5 if g["type"] == "hidden" else 1.0},
         "hidden init std is fan_in^-1/2, not 1"),
        ({"lr": lambda g: g["lr"] * 3**0.5 * 2 if g["name"] == "head" else g["lr"]}, "output LR"),
        ({"lr": lambda g: g["lr"] * 6**-0.5 if g["type"] != "hidden" else g["lr"]},
         "L^-1/2, of residual branches, does not belong to it"),
        ({"lr": lambda g: g["lr"] * 2**0.5 if g["type"] == "hidden" else g["lr"]}, "hidden LR: L counts layers"),
    ],
)  # fmt: skip
def test_a_number_that_is_off_is_named(changes: dict, words: str) -> None:
    found = rules(groups(**changes))
    assert len(found) <= 3
    assert any(words in rule for rule in found), found


def test_layers_for_branches_are_named() -> None:
    config = TrainConfig(width=64, layers=3, vocab_size=250, scheme="umup-iclr")
    assert any("L counts layers" in rule for rule in rules(groups(config)))
    assert any("L counts branches" in rule for rule in rules(groups(), config))


def test_sgd_has_no_learning_rate_factor() -> None:
    config = TrainConfig(width=64, layers=3, vocab_size=250, optimizer="sgd", lr=0.5)
    assert rules(groups(config, lr=lambda g: 0.5), config) == []
    assert any(" LR " in rule for rule in rules(groups(config), config))


def test_a_missing_root_of_the_base_width_is_named() -> None:
    config = TrainConfig(scheme="mup-table2", width=64, layers=3, vocab_size=250, base_width=32)
    found = rules(groups(config, lr=lambda g: g["lr"] / 32**0.5 if g["type"] == "output" else g["lr"]), config)
    assert found == ["output LR is 1: sp's, not mup-table2's base^1/2"]
    found = rules(groups(config, lr=lambda g: g["lr"] / 32**0.5 if g["name"] == "layer0.q" else g["lr"]), config)
    assert "√base width is missing" in found[0]


def test_a_move_along_the_abc_symmetry_is_no_broken_rule_but_said() -> None:
    """std fan_in^-1/2, no multiplier, and a learning rate that is A times as large: the same training with Adam."""

    def moved(key):
        theta = {"init_std": 1.0, "multiplier": -1.0, "lr": 1.0}[key]
        return lambda g: g[key] * (g["shape"][1] ** -0.5) ** theta if g["type"] == "hidden" else g[key]

    file = groups()
    for g in file["groups"]:
        g |= {key: moved(key)(g) for key in ("init_std", "multiplier", "lr")}
        del g["multiplier_backward"], g["weight_decay"]
    assert rules(file) == [
        "moved along the abc-symmetry: the same training with Adam, but not at unit scale, as FP8 needs it"
    ]


def test_pytorch_s_adamw_multiplies_the_decay_by_the_learning_rate() -> None:
    file = groups() | {"decay_times_lr": True}
    assert rules(file) == [
        "decay is multiplied by LR: it is independent (Table 6); pass λ/lr where the optimizer multiplies"
    ]
    assert rules(groups(weight_decay=lambda g: CONFIG.weight_decay / g["lr"]) | {"decay_times_lr": True}) == []


def test_a_measured_std_has_its_sampling_error() -> None:
    """Two standard errors off are no finding, twenty are."""

    def measured(errors):
        return lambda g: g["init_std"] * (1 + errors / (2 * prod(g["shape"])) ** 0.5)

    assert rules(groups(init_std=measured(2))) == []
    found = rules(groups(init_std=measured(20)))
    assert {rule.split()[0] for rule in found} == {"input", "hidden", "output"}
    assert all(" init std is 1." in rule for rule in found)  # a number, and no rule made up to fit it


@pytest.mark.parametrize(
    ("name", "type"),
    [
        ("model.embed_tokens.weight", "input"), ("wte", "input"), ("tok_embeddings", "input"), ("lm_head", "output"),
        ("unembed", "output"), ("readout.w", "output"), ("blocks.0.attn.wq", "hidden"), ("layers.3.mlp.up", "hidden"),
    ],
)  # fmt: skip
def test_a_type_is_read_off_a_name(name: str, type: str) -> None:
    assert doctor.kind_of({"name": name}) == type
    assert doctor.kind_of({"name": name, "type": "hidden"}) == "hidden"


# ---------------------------------------------------------------------------------------------------------------------
# The command


def run(tmp_path: Path, file: object, *options: str) -> int:
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(file))
    return main([*OPTIONS, "--against", str(path), *options])


def test_explain_against_prints_expected_given_and_the_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = groups(mistake="branch-lr-1")
    file["groups"].append({"name": "norm.gain", "shape": [64]})
    assert run(tmp_path, file, "--json") == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0] == "23 weights held against umup, 3 layers of width 64"
    assert "no rule for gains and biases: norm.gain" in lines[1]
    row = next(line for line in lines if line.startswith("layer0.q "))
    assert row.split()[1:4] == ["lr", "0.07655", "0.1875"]  # 1.5/8/√6, and 1.5/8
    assert "  hidden LR: L^-1/2 of residual branches is missing (Table 1) (21 of 23 weights)" in lines
    found = json.loads(last)
    assert not found["passed"]
    assert len(found["symptoms"]) == 21


def test_a_program_that_is_well_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, groups()) == 0
    assert capsys.readouterr().out.endswith("every number is as it should be\n")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ([], "is damaged (it is no dict)"),
        ({"groups": []}, "has no list of groups"),
        ({"groups": ["w"]}, "group 0 of"),
        ({"groups": [{"name": "w"}]}, "has no shape"),
        ({"groups": [{"name": "w", "shape": [4, -1]}]}, "has no shape"),
        ({"groups": [{"shape": [4, 4]}]}, "has no name"),
        ({"groups": [{"name": "w", "shape": [4, 4], "type": "big"}]}, "'w': type 'big' is not one of input, hidden"),
        ({"groups": [{"name": "w", "shape": [4, 4], "lr": "0.1"}]}, "'w': lr is '0.1', not a finite number"),
        ({"groups": [{"name": "w", "shape": [4, 4], "lr": float("nan")}]}, "'w': lr is nan, not a finite number"),
        ({"groups": [{"name": "w", "shape": [4, 4], "lr": -1}]}, "'w': lr is -1, not a finite number of at least 0"),
        ({"groups": [{"name": "w", "shape": [4, 4]}], "eta": 0}, "eta is 0 in"),
        ({"groups": [{"name": "w", "shape": [4, 4]}], "eta": "1"}, "eta is '1' in"),
    ],
)
def test_a_file_that_is_none_is_a_line(tmp_path: Path, refused: Refused, file: object, message: str) -> None:
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(file))
    assert message in refused(main, ["--against", str(path)])


def test_no_file_and_no_json_are_lines(tmp_path: Path, refused: Refused) -> None:
    missing = tmp_path / "nowhere"
    assert f"--against: {missing}: cannot be read (No such file" in refused(main, ["--against", str(missing)])
    (tmp_path / "groups.json").write_text("{")
    assert "is damaged (Expecting" in refused(main, ["--against", str(tmp_path / "groups.json")])
