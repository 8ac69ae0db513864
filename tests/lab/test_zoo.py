"""Every mistake is caught by the checks that the table says, and no others; and it is gone afterwards."""

import json
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest

from microumup import fused, model, ops, trainer
from microumup.config import ModelConfig
from microumup.diverged import Diverged
from microumup.engine import Tensor, backpropagate
from microumup.fp8 import LINEARS
from microumup.lab import late, sweep, zoo
from microumup.lab.mistakes import UMUP, ZOO, planted
from microumup.lab.zoo import ALL_CHECKS, CHECKS, best, by_transfer, examine, main, table
from microumup.model import init_params
from microumup.multipliers import residual_taus
from microumup.optim import DECAYS
from microumup.parametrization import SCHEMES, Shape, weight
from microumup.plan import plan, weights

DOC = Path(__file__).parents[2] / "docs" / "zoo.md"


def cells(text):
    """The rows of the Markdown table in a text, by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


# ---------------------------------------------------------------------------------------------------------------------
# The table


@pytest.mark.parametrize("name", ZOO)
def test_a_row_of_the_table_is_what_the_checks_find(name):
    committed, found = cells(DOC.read_text())[name], cells(table(examine([name], CHECKS)))[name]
    assert found == committed[: len(found)]  # late and transfer, the last columns, take minutes


def test_the_table_has_every_mistake_as_the_zoo_knows_it():
    said = {name: {check: "x" * (check in m.caught_by.split()) for check in ALL_CHECKS} for name, m in ZOO.items()}
    assert cells(DOC.read_text()) == cells(table(said))


def test_what_no_check_catches_has_a_word_on_what_does():
    for name, mistake in ZOO.items():
        assert bool(mistake.caught_by) != bool(mistake.seen_by or name == "nothing"), name
        assert set(mistake.caught_by.split()) <= set(ALL_CHECKS)


# ---------------------------------------------------------------------------------------------------------------------
# Planting


def state():
    names = [(module, name) for module in (ops, model, trainer) for name in vars(module) if not name.startswith("__")]
    functions = {(module.__name__, name): getattr(module, name) for module, name in names}
    return functions | dict(SCHEMES) | dict(DECAYS) | dict(fused.KERNELS) | weights(ModelConfig())


@pytest.mark.parametrize("name", ZOO)
def test_a_mistake_is_planted_and_taken_out_again(name):
    before = state()
    with planted(ZOO[name]):
        assert (state() != before) == (name != "nothing")
    assert state() == before


def test_it_is_taken_out_when_a_check_breaks(monkeypatch):
    before = state()
    monkeypatch.setattr(zoo, "fresh_loss", lambda config, batch_size: weights(config)["no such weight"])
    with pytest.raises(KeyError, match="no such weight"):
        zoo.by_scale(ZOO["readout-1"])
    assert state() == before


def planted_weight(name, which="layer0.up"):
    with planted(ZOO[name]):
        return weights(ModelConfig())[which]


def test_swapped_fans_are_those_of_the_transposed_weight():
    shape = Shape(fan_in=64, fan_out=176, base_fan_in=256, depth=4, base_depth=8, in_branch=True)
    other = weight(UMUP, "hidden", shape._replace(fan_in=176, fan_out=64))
    assert planted_weight("fans-swapped")[2:] == other[2:]
    right = weight(UMUP, "hidden", shape)
    assert planted_weight("fans-swapped-lr") == right._replace(C=other.C)
    assert planted_weight("fans-swapped", "head").A_backward == 256**-0.5


def test_eq_22_as_printed():
    with planted(ZOO["eq-22-printed"]):
        (a, b), *_, (a_last, _) = SCHEMES["umup"].residual.multipliers(4, 8, 2.0, 0.5)
    alpha_f = 2 * np.sqrt(2 / 1.25)
    assert (a / b) ** 2 == pytest.approx(0.5 * alpha_f / 2)
    assert (a_last**-2 - 1) ** -1 == pytest.approx(alpha_f / (1 + alpha_f + alpha_f) / 2)
    assert (a / b) ** 2 != pytest.approx(residual_taus(4, 2.0, 0.5)[0])


def test_tied_embeddings_get_the_gradients_of_both_places():
    config = ModelConfig(width=16, head_dim=4, layers=1, seq_len=8, vocab_size=32)
    numbers = plan(config, 2 * 8)
    params = {name: Tensor(w, name) for name, w in init_params(config, 0, np.float64).items()}
    ids = np.random.default_rng(0).integers(32, size=(2, 2, 8))
    with planted(ZOO["tied-embeddings"]):
        out = model.loss(params, *ids, numbers)
        zoo_params = {name: leaf.data for name, leaf in params.items()} | {"head": np.zeros((32, 16))}
        assert out.data == model.loss(zoo_params, *ids, numbers).data  # the head counts no more
    backpropagate(out, keep=True)
    head = out.inputs[1]
    assert not params["head"].grad.any()
    assert head.grad.any()
    unseen = np.setdiff1d(np.arange(32), ids[0])
    assert np.array_equal(params["embedding"].grad[unseen], head.grad[unseen])


def test_the_length_of_the_input_changes_the_logits_of_a_prefix():
    config = ModelConfig(width=16, head_dim=4, layers=1, seq_len=8, vocab_size=32)
    params, tokens, numbers = init_params(config), np.arange(8)[None], plan(config, 8)
    with planted(ZOO["input-length"]):
        whole, prefix = (model.forward(params, tokens[:, :n], numbers).data[:, :4] for n in (8, 4))
    right = model.forward(params, tokens, numbers).data[:, :4]
    assert np.array_equal(whole, right)  # at the training length nothing is wrong
    assert np.abs(prefix - right).max() > 0.01 * np.abs(right).max()


# ---------------------------------------------------------------------------------------------------------------------
# Late


def test_late_trains_with_the_mistake_and_names_what_is_furthest_off(monkeypatch):
    """The trainings are not run: the share that decay would have in them follows from its formula."""

    def share(config):
        C = weights(config)["layer0.q"].C
        taken = DECAYS[config.decay](config.weight_decay, 1.0, config.eta, C)
        return {(measure, name, at): taken if measure == "share" else 0.1
                for measure in late.MEASURES for name in LINEARS for at in late.MOMENTS}  # fmt: skip

    monkeypatch.setattr(late, "run", share)
    found = examine(["nothing", "coupled-decay"], ["late"])
    assert found["nothing"] == {"late": ""}
    assert found["coupled-decay"]["late"] == "share of q as width^-0.50, 0 % into the run, furthest off of 7"


# ---------------------------------------------------------------------------------------------------------------------
# Transfer


@pytest.mark.parametrize("bottom", [-4.3, 0.0, 1.2, 5.4])
def test_the_bottom_of_a_valley_is_found(bottom):
    octave, least = best(lambda octave: 2 + 0.05 * (octave - bottom) ** 2)
    assert octave == pytest.approx(bottom)
    assert least == pytest.approx(2)


def test_a_valley_ends_where_training_diverges():
    octave, least = best(lambda octave: 2 - 0.1 * octave if octave < 3 else inf)
    assert 1 < octave < 2
    assert 1.7 < least < 1.9


def test_a_model_that_always_diverges_has_no_best_eta():
    octave, least = best(lambda octave: inf)
    assert np.isnan(octave)
    assert least == inf


@pytest.mark.parametrize(
    ("wide", "finding"),
    [
        ((1.3, 2.04), ""),
        ((1.7, 2.0), "best η 2^1.0, then 2^1.7"),
        ((0.3, 2.0), "best η 2^1.0, then 2^0.3"),
        ((1.0, 2.06), "0.06 nats worse"),
        ((nan, inf), "best η 2^1.0, then 2^nan, inf nats worse"),
    ],
)
def test_transfer_fails_when_the_best_eta_moves_or_the_loss_is_worse(wide, finding):
    assert by_transfer([(1.0, 2.5), wide], [(0.8, 2.2), (0.7, 2.0)]) == finding


def test_transfer_trains_with_the_mistake_at_both_widths(monkeypatch):
    asked = []

    def loss(width, octave):
        wrong = SCHEMES["umup"].hidden.C is not UMUP.hidden.C
        asked.append((width, wrong))
        return 2 + 0.05 * (octave - 0.5 - wrong * (width == 64)) ** 2

    monkeypatch.setattr(zoo, "valid_loss", loss)
    assert examine(["hidden-lr-1"], ["transfer"]) == {"hidden-lr-1": {"transfer": "best η 2^0.5, then 2^1.5"}}
    assert set(asked) == {(width, wrong) for width in (16, 64) for wrong in (False, True)}


def test_the_loss_is_that_of_a_short_training(monkeypatch, corpus):
    monkeypatch.setattr(sweep, "corpus_of", lambda config: corpus)
    monkeypatch.setattr(zoo, "STEPS", 2)
    assert 4 < zoo.valid_loss(16, 1) < 6

    def diverge(config, corpus, **_):
        raise Diverged(1, "loss", inf, config)

    monkeypatch.setattr(sweep, "train", diverge)
    assert zoo.valid_loss(16, 1) == inf


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def findings(monkeypatch):
    """What the checks find is given, by check, for every mistake; they are not run."""
    given = {"gradcheck": "", "scale": "much", "coord": ""}
    monkeypatch.setattr(zoo, "look", lambda job: given[job[1]])
    return given


@pytest.mark.usefixtures("findings")
def test_the_command_succeeds_when_the_table_is_as_expected(capsys):
    assert main(["mean-loss", "silu-1", "--workers", "0", "--json"]) == 0
    out, err = capsys.readouterr()
    assert cells(out)["mean-loss"][-3:] == ["-", "caught", "-"]
    assert err == ""
    report = json.loads(out.splitlines()[-1])
    found = {"gradcheck": "", "scale": "much", "coord": ""}
    assert report == {"passed": True, "found": {"mean-loss": found, "silu-1": found}}


def test_the_command_fails_and_names_what_is_not_as_expected(findings, capsys):
    findings["coord"] = findings.pop("scale")
    findings["scale"] = ""
    assert main(["mean-loss", "--workers", "0", "--quiet"]) == 1
    wrong = "mean-loss is not caught by scale; mean-loss is caught by coord"
    assert capsys.readouterr() == ("", f"microumup zoo: not as expected: {wrong}\n")


@pytest.mark.usefixtures("findings")
def test_only_the_checks_that_were_asked_for_are_run(capsys):
    assert main(["mean-loss", "--workers", "0", "--checks", "coord,gradcheck"]) == 0
    out = capsys.readouterr().out
    assert cells(out)["mistake"][-2:] == ["coord", "gradcheck"]
    assert "- mean-loss: by scale" in out


def test_a_false_alarm_is_not_as_expected():
    assert zoo.unexpected({"nothing": {"coord": "1 slopes"}}) == ["nothing is caught by coord"]


def test_processes_find_what_this_one_finds():
    names = ["readout-sqrt", "nothing"]
    assert examine(names, ["scale"], workers=1) == examine(names, ["scale"])


def test_the_list_names_everything(capsys):
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ZOO)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rope-sing"], "NAME: 'rope-sing' is unknown; choose from nothing, hidden-lr-inverse"),
        (["--checks", "scale,all"], "--checks: 'all' is unknown; choose from gradcheck, scale, coord, late, "),
        (["--checks", ""], "--checks: '' is unknown"),
        (["--workers", "-1"], "--workers: -1 is too small; the least is 0"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(argv, message, refused):
    assert message in refused(main, argv)
