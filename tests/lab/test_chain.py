"""The map between rows is exact where it claims to be, names what it cannot keep, and is caught where it is wrong."""

import json
from dataclasses import replace
from itertools import pairwise, permutations
from math import sqrt

import numpy as np
import pytest

from microumup import model
from microumup.config import ModelConfig
from microumup.engine import Tensor, backpropagate
from microumup.lab import chain
from microumup.lab.chain import CHAIN, SIZES, changes, lr_factors, main, measure, move, plans, weight_factors
from microumup.lab.gradcheck import tiny_config
from microumup.model import init_params
from microumup.optim import DECAYS, SGD, AdamW
from microumup.parametrization import SCHEMES
from microumup.plan import gradient_constants, plan

SHAPE = {"width": 16, "layers": 2, "head_dim": 4, "vocab_size": 11, "seq_len": 6, "norm_eps": 0.0}
STEPS = 10


def planned(p=None, **options):
    """The plan of these options, or of those of another plan but for these, for batches of 4 sequences."""
    config = replace(p.config, **options) if p else ModelConfig(**{**SHAPE, **options})
    return plan(config, 4 * config.seq_len)


MUP = planned(scheme="mup", base_width=8, base_layers=1, sigma_init=0.3, alpha_emb=2.0)
TABLE2 = planned(MUP, scheme="mup-table2")
UMUP = planned()


def text(p, steps, seed=0):
    """Sequences that count on by 1 or 2. Every token is among the first inputs: a row of the embedding without a
    gradient is 0/0 to Adam at ε = 0."""
    rng = np.random.default_rng(seed)
    V, T = p.config.vocab_size, p.config.seq_len
    tokens = (rng.integers(V, size=(steps, 4, 1)) + rng.integers(1, 3, (steps, 4, T + 1)).cumsum(-1)) % V
    tokens[0, :, :-1].flat[:V] = np.arange(V)
    return tokens


def fresh(p):
    return init_params(p.config, 0, np.float64)


def adamw(p, params, C=None, *, eps=0.0, lr=2**-7, decay="independent", checkpoint=None):
    C = C or {name: w.C for name, w in p.weights.items()}
    optimizer = AdamW(params, C, lr=lr, weight_decay=0.01, decay=decay, eps=eps)
    if checkpoint:
        optimizer.moments, optimizer.updates = checkpoint
    return optimizer


def losses(p, optimizer, tokens):
    found = []
    for batch in tokens:
        leaves = {name: Tensor(w, name) for name, w in optimizer.params.items()}
        out = model.loss(leaves, batch[:, :-1], batch[:, 1:], p)
        backpropagate(out)
        found.append(float(out.data))
        optimizer.step({name: leaf.grad for name, leaf in leaves.items()}, 1.0)
    return np.array(found)


def half_trained(p, tokens, **settings):
    optimizer = adamw(p, fresh(p), **settings)
    losses(p, optimizer, tokens)
    return optimizer


def worst_after_a_move(source, target, *, spoil=lambda *moved: moved, needed_C=False, **settings):
    """Largest difference of a loss over STEPS, in the middle of training."""
    tokens = text(source, 2 * STEPS)
    here = half_trained(source, tokens[:STEPS], **settings)
    params, moments = spoil(*move(here.params, here.moments, source, target))
    lr, C = lr_factors(source, target)
    settings = {"lr": 2**-7, **settings}
    settings["lr"] *= lr
    there = adamw(target, params, C if needed_C else None, checkpoint=(moments, here.updates), **settings)
    return np.abs(losses(source, here, tokens[STEPS:]) - losses(target, there, tokens[STEPS:])).max()


@pytest.fixture
def plant(monkeypatch):
    """Change a cell of a row. Plans made after that have it."""

    def change(scheme, type, **cells):
        row = SCHEMES[scheme]
        monkeypatch.setitem(SCHEMES, scheme, row._replace(**{type: getattr(row, type)._replace(**cells)}))

    return change


# ---------------------------------------------------------------------------------------------------------------------
# What is the same


@pytest.mark.parametrize("sigma_init", [1.0, 0.3])
def test_mup_and_mup_table2_have_the_same_100_losses(sigma_init):
    rows = [planned(p, sigma_init=sigma_init) for p in (MUP, TABLE2)]
    tokens = text(MUP, 100)
    mup, table2 = (losses(p, adamw(p, fresh(p)), tokens) for p in rows)
    assert np.abs(mup - table2).max() < 1e-12
    assert mup[-1] < mup[0] - 0.5  # it is training


def test_adams_epsilon_sees_the_move_a_little():
    """It is added to the root mean square of gradients, and those are θ times smaller: 3e-5, and 2e-6 to 8e-6 at
    σ_init = 1."""
    tokens = text(MUP, 100)
    mup, table2 = (losses(p, adamw(p, fresh(p), eps=1e-8), tokens) for p in (MUP, TABLE2))
    assert 1e-9 < np.abs(mup - table2).max() < 1e-4


def test_mup_at_base_width_is_sp_with_the_same_attention_factor():
    sp = planned(scheme="sp")
    mup = planned(scheme="mup", base_width=16, base_layers=2, alpha_attn_softmax=sqrt(4))
    tokens = text(sp, 20)
    one, two = (losses(p, adamw(p, fresh(p), eps=1e-8), tokens) for p in (sp, mup))
    assert np.abs(one - two).max() < 1e-13
    assert set(weight_factors(sp, mup).values()) == {1.0}
    assert changes(sp, mup) == []


@pytest.mark.parametrize(("source", "target"), [(MUP, TABLE2), (TABLE2, MUP)], ids=["mup to table2", "and back"])
def test_a_checkpoint_in_the_middle_of_training_continues_on_its_trajectory(source, target):
    assert changes(source, target) == []
    assert worst_after_a_move(source, target) < 1e-12


@pytest.mark.parametrize(("source", "target"), list(permutations(SCHEMES, 2)))
def test_the_map_is_exact_from_any_row_to_any_other(source, target):
    """With the C that it asks for: then nothing is left to differ, so `changes` has left out nothing."""
    pair = [plan(replace(tiny_config(scheme), seq_len=6), 4 * 6) for scheme in (source, target)]
    assert worst_after_a_move(*pair, needed_C=True) < 1e-12
    own = worst_after_a_move(*pair)
    assert own < 1e-12 if changes(*pair) == [] else own > 1e-6


def test_there_and_back_is_where_it_was():
    params = fresh(MUP)
    optimizer = half_trained(MUP, text(MUP, 3))
    there = move(params, optimizer.moments, MUP, UMUP)
    weights, moments = move(*there, UMUP, MUP)
    assert moments.keys() == {"m", "v"}
    for before, after in ((params, weights), *((optimizer.moments[kind], moments[kind]) for kind in "mv")):
        assert before.keys() == after.keys()
        assert all(after[name] == pytest.approx(array, rel=1e-13, abs=0) for name, array in before.items())


def test_a_move_writes_to_none_of_its_arrays_and_keeps_their_dtype():
    params = init_params(MUP.config)
    weights, moments = move(params, {"m": {"head": params["head"]}}, MUP, TABLE2)
    assert {w.dtype for w in [*weights.values(), *moments["m"].values()]} == {np.dtype(np.float32)}
    assert all(np.array_equal(params[name], w) for name, w in init_params(MUP.config).items())


@pytest.mark.parametrize("decay", DECAYS)
def test_independent_weight_decay_keeps_the_map_exact_and_coupled_breaks_it(decay):
    # coupled is λ s η C, and C is what the map changes
    worst = worst_after_a_move(MUP, TABLE2, decay=decay)
    assert worst > 1e-6 if decay == "coupled" else worst < 1e-12


def test_sgd_stays_on_its_trajectory_with_its_constants_over_theta_squared():
    theta, tokens = weight_factors(MUP, UMUP), text(MUP, STEPS)
    params, moments = move(fresh(MUP), {}, MUP, UMUP)
    assert moments == {}
    constants = {name: c / theta[name] ** 2 for name, c in gradient_constants(UMUP).items()}
    here = SGD(fresh(MUP), gradient_constants(MUP), lr=0.1, weight_decay=0.01)
    there = SGD(params, constants, lr=0.1, weight_decay=0.01)
    one, two = losses(MUP, here, tokens), losses(UMUP, there, tokens)
    assert np.abs(one - two).max() < 1e-12
    assert one[-1] < one[0] - 0.1


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong is caught


@pytest.mark.parametrize("forgotten", ["m", "v"])
def test_a_move_that_leaves_out_a_moment_is_caught(forgotten):
    theta = weight_factors(MUP, TABLE2)
    power = {"m": 1, "v": 2}[forgotten]

    def spoil(params, moments):
        unmoved = {name: array * theta[name] ** power for name, array in moments[forgotten].items()}
        return params, {**moments, forgotten: unmoved}

    assert worst_after_a_move(MUP, TABLE2, spoil=spoil) > 1e-3


def test_a_number_of_updates_that_starts_anew_is_caught():
    tokens = text(MUP, 2 * STEPS)
    here = half_trained(MUP, tokens[:STEPS])
    params, moments = move(here.params, here.moments, MUP, TABLE2)
    there = adamw(TABLE2, params, checkpoint=(moments, 0))
    assert np.abs(losses(MUP, here, tokens[STEPS:]) - losses(TABLE2, there, tokens[STEPS:])).max() > 1e-3


def test_a_c_that_forgets_sigma_init_is_caught(plant):
    plant("mup-table2", "input", C=lambda s: 1.0)
    table2 = planned(TABLE2)
    assert changes(MUP, table2) == ["embedding: C is 0.3 times the one needed"]
    assert worst_after_a_move(MUP, table2) > 1e-3


def test_a_multiplier_that_forgets_sigma_init_is_named_by_what_follows_from_it(plant):
    plant("mup-table2", "output", A=lambda s: s.base_fan_in**0.5 / s.fan_in)
    table2 = planned(TABLE2)
    sentence = "head: C is 3.333 times the one needed, a fresh one is 3.333 times as large"
    assert changes(MUP, table2) == [sentence]
    assert worst_after_a_move(MUP, table2, needed_C=True) < 1e-12


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be kept is named


EXPECTED = {  # at SIZES: D = 32, base width 16, L = 4, base depth 2, σ_init 1/2, α_emb 2
    "mup": [],
    "mup-table2": [],
    "mup-table3": [
        "η: 22.63 times it keeps v's learning rate; C of the others is compared at that",  # base width · √base depth
        "embedding: C is 11.31 times the one needed",  # 22.63 σ_init
        "q, k, v, gate, up: a fresh one is 2 times as large",  # 1/σ_init
        "o: C is 0.3536 times the one needed, a fresh one is 0.7071 times as large (r_l/r_0 0.7071 -> 0.25)",
        "down: C is 0.1286 times the one needed, a fresh one is 0.7071 times as large (r_l/r_0 0.7071 -> 0.25)",
        "head: C is 1.414 times the one needed, a fresh one is 0.5 times as large",  # 22.63/16, 2/√16
    ],
    "umup": [
        "embedding: C is 0.1768 times the one needed",  # 1/√D
        "o: C is 2.016 times the one needed, a fresh one is 2.016 times as large (1/σ 1 -> 2.016)",
        "down: C is 1.682 times the one needed, a fresh one is 1.682 times as large (1/σ 1 -> 1.682)",
        "readout's backward: 5.657 times on all gradients behind it; Adam sees it through ε alone",  # √D
    ],
    "umup-iclr": [
        "η: 0.7071 times it keeps v's learning rate; C of the others is compared at that",  # layers, not branches
        "embedding, head: C is 0.7071 times the one needed",
        "readout's backward: 1.155 times on all gradients behind it; Adam sees it through ε alone",  # √(D/V)
    ],
}


@pytest.mark.parametrize("link", CHAIN, ids=lambda link: link.target)
def test_every_link_names_exactly_what_differs(link):
    assert changes(*plans(link, SIZES)) == EXPECTED[link.target]


def test_the_chain_goes_through_every_row():
    assert [CHAIN[0].source, *(link.target for link in CHAIN)] == list(SCHEMES)
    assert all(one.target == two.source for one, two in pairwise(CHAIN))


@pytest.mark.parametrize(
    ("option", "sentences"),
    [
        # r_l²/r_0² = α_res²/L
        ({"alpha_res": 2.0}, ["o, down: C is 2 times the one needed, a fresh one is 2 times as large "
                              "(r_l/r_0 0.5 -> 1)"]),
        ({"alpha_loss_softmax": 4.0}, ["head: C is 4 times the one needed, a fresh one is 4 times as large "
                                       "(α_loss-softmax 1 -> 4)"]),
        ({"eta_emb": 3.0}, ["embedding: C is 3 times the one needed"]),
        ({"embedding_lr_rule": False}, ["embedding: C is 4 times the one needed"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_hyperparameter_names_the_weights_it_acts_on(option, sentences):
    assert changes(UMUP, planned(UMUP, **option)) == sentences


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ({"alpha_attn_softmax": 4.0}, ["q, k", "o"]),
        ({"alpha_ffn_act": 2.0}, ["gate", "down"]),
        ({"alpha_res_attn_ratio": 2.0}, ["o", "down"]),
        ({"seq_len": 100}, ["o"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_alpha_in_an_op_names_the_weights_beside_it(option, names):
    assert [sentence.partition(":")[0] for sentence in changes(UMUP, planned(UMUP, **option))] == names


def test_a_ratio_that_varies_over_layers_is_given_as_a_range(plant):
    constant = SCHEMES["umup"].residual._replace(multipliers=lambda L, *_: [(sqrt(1 / 2), sqrt(1 / 2))] * L)
    before = planned(scheme="umup-iclr", alpha_res=sqrt(1 / 2))
    plant("umup", "residual", multipliers=constant.multipliers)
    # r_l/r_0 is 1/2 at L = 4; with a = b it is √2^(l-1): 1 and 2 for o, √2 and 2√2 for down
    said = changes(before, planned())
    assert any(sentence.endswith("(r_l/r_0 0.5 -> 1 to 2)") for sentence in said)
    assert any(sentence.endswith("(r_l/r_0 0.5 -> 1.414 to 2.828)") for sentence in said)


def test_rmsnorms_epsilon_makes_another_trunk_an_approximation():
    def pair(norm_eps):
        source = planned(scheme="mup-table3", alpha_emb=2.0, norm_eps=norm_eps)
        return source, planned(alpha_res=0.5, norm_eps=norm_eps)

    assert not any(sentence.startswith("RMSNorm") for sentence in changes(*pair(0.0)))
    source, target = pair(1e-3)
    # what the embedding has on the trunk: 2 after every branch, against 1 and down to 1/√(1 + α_res²)
    assert changes(source, target)[-1] == "RMSNorm's ε: still 0.001, and the trunk is 0.4472 to 0.5 times as large"
    params, tokens = fresh(source), text(source, 1)[0]
    moved, _ = move(params, {}, source, target)
    one, two = (model.forward(w, tokens, p).data for w, p in ((params, source), (moved, target)))
    assert 1e-6 < np.abs(one - two).max() / np.abs(one).max() < 1e-2  # ε against mean squares near 1 and 4


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 32}, "move: --width is 16 in source, 32 in target; make them the same"),
        ({"norm_eps": 1e-6}, "move: --norm-eps is 0.0 in source, 1e-06 in target"),
        ({"fp8": "fp8"}, "move: a cast to FP8 is not the same at another scale; move with fp8='none'"),
    ],
)
def test_what_is_another_network_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        move(fresh(MUP), {}, MUP, planned(TABLE2, **options))


def test_params_of_another_model_are_refused():
    with pytest.raises(ValueError, match="move: params are not those of source"):
        move({"params/head": np.zeros(3)}, {}, MUP, TABLE2)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_succeeds_and_its_last_line_is_json(capsys):
    assert main(["--steps", "4", "--json"]) == 0
    *out, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report["passed"] is True
    assert [(s["source"], s["target"]) for s in report["steps"]] == [(link.source, link.target) for link in CHAIN]
    assert [s["changes"] for s in report["steps"]] == list(EXPECTED.values())
    same, another = "the same network, the same trajectory", "the same network, another trajectory"
    assert [s["verdict"] for s in report["steps"]] == [same, same, another, another, another]
    assert [line.strip() for line in out if line.startswith("    ok")] == [
        f"ok  {s['verdict']}" + (", because" if s["changes"] else "") for s in report["steps"]
    ]
    sp, table2, *_ = report["steps"]
    assert max(sp["losses"].values()) < 1e-12
    assert table2["losses"]["0"] < 1e-12 < table2["losses"]["1e-08"]
    assert table2["weights"]["layer1.q"] == pytest.approx(2 * sqrt(32))
    assert table2["C"] == pytest.approx(table2["weights"])
    assert "    w x 11.31     C x 11.31         q, k, v, o, gate, up" in out


def test_the_command_fails_and_names_the_step_that_is_not_what_its_row_says(plant, capsys):
    plant("mup-table2", "input", C=lambda s: 1.0)
    assert main(["--steps", "3", "--json"]) == 1
    captured = capsys.readouterr()
    # the next step is what it always was: another trajectory, and every difference of it named
    assert captured.err == "microumup chain: not what the row says: mup -> mup-table2\n"
    assert "    FAIL  the same network, another trajectory, because" in captured.out.splitlines()
    report = json.loads(captured.out.splitlines()[-1])
    assert [s["passed"] for s in report["steps"]] == [True, False, True, True, True]


def test_a_map_that_is_wrong_fails_every_step_it_is_wrong_at(monkeypatch, capsys):
    original = chain.weight_factors

    def planted(source, target):
        return {name: 1.0 if name == "layer1.down" else theta for name, theta in original(source, target).items()}

    monkeypatch.setattr(chain, "weight_factors", planted)
    assert main(["--steps", "3", "--quiet"]) == 1
    failed = "mup -> mup-table2, mup-table2 -> mup-table3, mup-table3 -> umup"  # elsewhere θ is 1
    assert capsys.readouterr().err == f"microumup chain: not what the row says: {failed}\n"
    assert measure(CHAIN[1], *plans(CHAIN[1], SIZES), steps=2)["verdict"] == "another network"


def test_a_c_that_is_wrongly_taken_for_the_needed_one_fails(monkeypatch):
    original = chain.lr_factors

    def planted(source, target):
        lr, C = original(source, target)
        return lr, C | {"layer1.k": (1 + 1e-6) * C["layer1.k"]}

    monkeypatch.setattr(chain, "lr_factors", planted)
    found = measure(CHAIN[3], *plans(CHAIN[3], SIZES))
    assert found["with_needed_C"] > 100 * chain.SAME
    assert not found["passed"]


def test_quiet_prints_nothing(capsys):
    assert main(["--steps", "2", "--quiet", "--layers", "1", "--width", "16"]) == 0
    assert capsys.readouterr() == ("", "")


def test_the_seed_changes_the_numbers_and_repeats_them(capsys):
    def report(seed):
        main(["--steps", "2", "--layers", "1", "--width", "16", "--quiet", "--json", "--seed", seed])
        return [step["losses"] for step in json.loads(capsys.readouterr().out)["steps"]]

    assert report("1") == report("1") != report("2")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--width", "20"], "--width: 20 is not a multiple of --head-dim 8"),
        (["--base-width", "6"], "--base-width: 6 is no multiple of 4"),
        (["--layers", "0"], "--layers: 0 is too small; the least is 1"),
        (["--steps", "1"], "--steps: 1 is too small; the least is 2"),
        (["--seed", "-1"], "--seed: -1 is too small; the least is 0"),
        (["--steps", "x"], "--steps: 'x' is not a whole number"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(argv, message, refused):
    assert message in refused(main, argv)
