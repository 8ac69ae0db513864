import json
import re
import sys
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

from microumup.backend import install_hint
from microumup.config import ModelConfig
from microumup.engine import Tensor
from microumup.fp8 import LINEARS
from microumup.lab import coordcheck as cc
from microumup.lab.coordcheck import activations, coordcheck, effects, main, reading
from microumup.lab.scales import fresh_loss, loss_with_logits, named_ops
from microumup.lab.slopes import row_of
from microumup.model import init_params
from microumup.multipliers import UnitScaled
from microumup.ops import linear_forward
from microumup.parametrization import SCHEMES, one
from microumup.plan import plan

# Widths as small as these are up to 0.15 off, of the 0.25 that the check allows: √(1 + 16/32) at width 32 is 1.22.
WIDTHS = (32, 64, 128, 256)
DEPTHS = (2, 4, 8, 16)
HIDDEN = [name for name in LINEARS if name != "head"]


def config(scheme="umup", **options):
    return ModelConfig(scheme=scheme, **{"seq_len": 16} | options)


NOISY = " But one seed, or two widths, are noisy: look again with --seeds 3 and a third width."  # of `check`'s one seed


def check(scheme="umup", **options):
    return coordcheck(config(scheme), **{"widths": WIDTHS, "seeds": (0,)} | options)


def failures(report):
    return {(row.measure, row.tensor): row.verdict for row in report.failed}


@pytest.fixture
def plant(monkeypatch):
    """Put other cells into the row umup."""

    def put(**cells):
        monkeypatch.setitem(SCHEMES, "umup", SCHEMES["umup"]._replace(**cells))

    return put


# ---------------------------------------------------------------------------------------------------------------------
# The verdict


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "sp"])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_transfers_over_width_passes(scheme, seed):
    assert failures(check(scheme, seeds=(seed,))) == {}


@pytest.mark.parametrize("seed", [0, 1])
def test_sp_fails_over_width_as_its_updates_grow(seed):
    report = check("sp", seeds=(seed,))
    found = failures(report)
    assert {("effect", name): "too large" for name in LINEARS}.items() <= found.items()
    assert all(measure != "init" for measure, _ in found)  # it starts well
    slopes = [row.slope for row in report.rows if row.measure == "effect" and row.step == 1 and row.tensor in HIDDEN]
    assert slopes == pytest.approx([1.0] * len(HIDDEN), abs=0.2)  # C = 1 where 1/fan_in is right


@pytest.mark.parametrize("scheme", ["umup", "mup"])
def test_what_transfers_over_depth_passes(scheme):
    assert failures(check(scheme, depths=DEPTHS, seeds=(0, 1))) == {}


def test_sp_fails_over_depth_as_its_trunk_grows():
    found = failures(check("sp", depths=DEPTHS))
    assert found["init", "ffn_add"] == found["change", "ffn_add"] == found["effect", "q"] == "too large"


def test_with_heads_that_grow_scores_start_at_one_over_root_k():
    report = check(heads=2, widths=WIDTHS, seeds=(0, 1))
    assert failures(report) == {}
    slope = next(row.slope for row in report.rows if (row.measure, row.tensor) == ("init", "scores"))
    assert slope == pytest.approx(-0.5, abs=0.1)


def test_the_ablation_of_the_embedding_rule_has_another_expectation():
    ablated = replace(config(), embedding_lr_rule=False)
    assert failures(coordcheck(ablated, widths=WIDTHS, seeds=(0,))) == {}
    assert cc.expected_slope("effect", "embedding", config(), "width") == (-0.5, -0.5)
    assert cc.expected_slope("effect", "embedding", ablated, "width") == (0, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Planted mistakes, and where each of them shows


def test_a_hidden_learning_rate_of_1_shows_in_the_effect_of_hidden_weights(plant):
    plant(hidden=SCHEMES["umup"].hidden._replace(C=one))
    report = check()
    found = failures(report)
    assert {("effect", name): "too large" for name in HIDDEN}.items() <= found.items()
    assert all(measure != "init" for measure, _ in found)
    words = reading(report)
    assert words.startswith(f"FAIL: {len(found)} of 42 slopes")
    assert "C, the learning rate factor, of the hidden weights" in words
    assert "effect of the updates of q, k, v, o, up, gate, down goes as width^0.3" in words
    assert words.endswith(f"width^0 is right. One learning rate for all is too high for wide models.{NOISY}")


def test_a_hidden_learning_rate_of_1_over_fan_in_is_too_small(plant):
    plant(hidden=SCHEMES["umup"].hidden._replace(C=lambda s: 1 / s.fan_in))
    report = check()
    assert {("effect", name): "too small" for name in HIDDEN}.items() <= failures(report).items()
    assert reading(report).endswith(f"too low for wide models.{NOISY}")


def test_who_reads_fail_of_few_models_is_told_that_it_may_be_chance(plant):
    """umup itself fails over depths 2 and 4 with one seed."""
    plant(hidden=SCHEMES["umup"].hidden._replace(C=lambda s: 1 / s.fan_in))
    one_seed = check()
    seeds = one_seed._replace(rows=[row._replace(interval=0.1) for row in one_seed.rows])
    assert reading(seeds).endswith("too low for wide models.")
    for few in (one_seed, seeds._replace(sizes=seeds.sizes[:2])):
        assert reading(few).endswith(f"too low for wide models.{NOISY}")


def test_an_embedding_learning_rate_of_1_shows_in_its_effect_alone(plant):
    plant(input=SCHEMES["umup"].input._replace(C=one))
    report = check()
    assert failures(report) == {("effect", "embedding"): "too large"}
    assert "C, the learning rate factor, of the input weights" in reading(report)


def test_a_readout_of_1_over_root_fan_in_shows_in_the_logits_alone(plant):
    plant(output=SCHEMES["umup"].output._replace(A=lambda s: s.fan_in**-0.5))
    report = check()
    assert failures(report) == {(measure, "head"): "too large" for measure in ("init", "effect", "change")}
    assert "A and √B, multiplier and initial std, of the output weights" in reading(report)


def test_a_missing_hidden_multiplier_shows_at_initialization(plant):
    plant(hidden=SCHEMES["umup"].hidden._replace(A=one))
    found = failures(check())
    assert {("init", name): "too large" for name in ("q", "k", "v", "o", "up", "gate", "down")}.items() <= found.items()


def test_a_readout_of_0_is_too_small_and_breaks_nothing(plant):
    plant(output=SCHEMES["umup"].output._replace(A=lambda s: 0.0))
    report = check()
    assert failures(report)["init", "head"] == "too small"
    assert "of head goes as zero where width^-0.5 is right" in reading(report)


def test_scores_over_root_k_show_only_where_heads_grow(plant):
    plant(score_scale=lambda K: K**-0.5)
    assert failures(check()) == {}
    report = check(heads=2, seeds=(0, 1))
    assert failures(report) == {("init", "scores"): "too large"}
    assert "the factor before attention's softmax" in reading(report)


def test_a_branch_learning_rate_of_1_shows_over_depth_alone(plant):
    plant(residual=SCHEMES["umup"].residual._replace(C=one))
    assert failures(check()) == {}
    report = check(depths=DEPTHS)
    found = failures(report)
    assert {("effect", name): "too large" for name in HIDDEN}.items() <= found.items()
    assert all(measure != "init" for measure, _ in found)
    assert "C, the learning rate factor, of weights in branches" in reading(report)


def test_a_residual_multiplier_applied_twice_shows_over_depth(plant):
    twice = staticmethod(lambda a, b: UnitScaled.residual(a * a, b))
    plant(factors=type("Twice", (UnitScaled,), {"residual": twice}))
    found = failures(check(depths=DEPTHS))
    assert {("change", name): "too small" for name in cc.TRUNK}.items() <= found.items()


def test_a_run_that_diverges_is_an_answer():
    report = check("sp", lr=1e30, widths=(32, 64))
    assert not report.passed
    overflowing = [row for row in report.failed if row.slope == inf]
    assert overflowing
    assert all(row.verdict == "too large" for row in overflowing)


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def test_the_step_that_is_furthest_off_is_judged():
    rows = [
        row_of("effect", "q", step, WIDTHS, np.array([[float(size) ** slope for size in WIDTHS]]), (-0.5, 0.0))
        for step, slope in ((1, -0.2), (2, 0.3), (3, -0.7))
    ]
    report = cc.Report("umup", "width", WIDTHS, 3, rows)
    assert [row.step for row in report.judged] == [2]
    assert not report.passed


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def test_an_effect_is_what_an_output_is_with_the_updates_less_what_it_is_without():
    c = config(width=32, layers=1)
    before = init_params(c, 0, np.float64)
    after = {name: w + 0.1 * init_params(c, 1, np.float64)[name] for name, w in before.items()}
    tokens, targets = np.random.default_rng(0).integers(256, size=(2, 2, 16))
    leaves = {name: Tensor(w, name) for name, w in after.items()}
    ops = named_ops(loss_with_logits(leaves, tokens, targets, plan(c, tokens.size)))
    found = effects(ops, before)
    assert set(found) == {"embedding", *LINEARS}
    for op in ops:
        if op.node.op == "linear":
            without, _ = linear_forward(op.node.inputs[0].data, before[op.weight.name], scale=op.node.saved[2])
            np.testing.assert_allclose(found[op.kind][0].reshape(without.shape), op.node.data - without, atol=1e-12)
    np.testing.assert_allclose(found["embedding"][0], (after["embedding"] - before["embedding"])[tokens])


def test_scores_are_those_of_pairs_that_see_each_other():
    c = config(width=32)
    ops = named_ops(fresh_loss(c, 2))
    scores = activations(ops)["scores"]
    assert [s.shape for s in scores] == [(2, 2, 16 * 17 // 2)] * 2  # (B, H, pairs), layer by layer
    q, k = (next(op.node.data for op in ops if op.kind == kind) for kind in ("q_rope", "k_rope"))
    assert scores[0][1, 1, 4] == pytest.approx(q[1, 2, 16:] @ k[1, 1, 16:] / 16, rel=1e-5)  # pair (2, 1) of head 1


def test_the_same_batch_is_trained_on_at_every_step():
    report = check(widths=(32, 64), steps=3)
    assert sorted({row.step for row in report.rows}) == [0, 1, 2, 3]
    assert {row.measure for row in report.rows if row.step == 0} == {"init"}
    change = {row.step: row.rms for row in report.rows if (row.measure, row.tensor) == ("change", "head")}
    assert all(np.greater(change[step + 1], change[step]).all() for step in (1, 2))  # ever further the same way


# ---------------------------------------------------------------------------------------------------------------------
# The command

QUICK = ["--widths", "32,64,128", "--seeds", "1", "--steps", "1", "--workers", "0"]


def test_the_command_shows_a_table_and_a_verdict(capsys):
    assert main(QUICK) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:7] == ["umup", "width", "32", "width", "64", "width", "128"]
    head = next(line.split() for line in out.splitlines() if line.startswith("  head"))
    assert [float(x) for x in head[1:4]] == pytest.approx([32**-0.5, 64**-0.5, 128**-0.5], rel=0.1)
    assert head[4] == "0"
    assert float(head[5]) == pytest.approx(-0.5, abs=0.1)
    assert head[6:] == ["-0.5", "ok"]
    assert out.splitlines()[-1].startswith("PASS: from width 32 to 128 all 42 slopes are as they should be.")


@pytest.mark.parametrize("axis", ["width", "depth"])
def test_a_verdict_names_what_the_check_cannot_see(axis):
    text = reading(cc.Report("umup", axis, (2, 16), 4, []))
    assert text.startswith(f"PASS: from {axis} 2 to 16")
    for unseen in ("weight decay", "Adam's ε", "late part of a training"):
        assert unseen in text.partition("They cannot show what")[2]
    assert "speaks against" not in text
    assert ("fig6.json" in text) == (axis == "depth")


def test_over_depth_the_verdict_quotes_what_whole_trainings_have_measured():
    claims = json.loads((Path(__file__).parents[2] / "docs" / "figures" / "fig6.json").read_text())["claims"]
    for scheme in ("u-µP", "µP"):
        [claim] = [c for c in claims if c["claim"] == f"{scheme}: the best learning rate moves from 1 to 8 layers by"]
        moved = re.escape(f"{claim['effect']:+.2f}")
        assert re.search(rf" by {moved}( octaves)? for {scheme}", cc.DRIFT_OVER_DEPTH)


def test_the_command_ends_with_1_where_a_scheme_fails(capsys):
    assert main([*QUICK, "--scheme", "sp", "--quiet", "--json"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert (result["passed"], result["scheme"], result["axis"], result["sizes"]) == (
        False,
        "sp",
        "width",
        [32, 64, 128],
    )
    row = next(row for row in result["rows"] if (row["measure"], row["tensor"]) == ("effect", "q"))
    assert (row["step"], row["verdict"], row["expected"], row["interval"]) == (1, "too large", [0, 0], None)
    assert len(row["rms"]) == 3
    assert result["reading"].startswith("FAIL")


def test_json_has_null_for_what_is_no_number(capsys):
    assert main([*QUICK, "--scheme", "sp", "--lr", "1e30", "--steps", "2", "--quiet", "--json"]) == 1
    text = capsys.readouterr().out
    assert "NaN" not in text
    assert "Infinity" not in text
    assert any(row["slope"] is None and None in row["rms"] for row in json.loads(text)["rows"])


def test_the_command_checks_over_depths(capsys):
    assert main(["--depths", "1,2", "--width", "32", "--seeds", "1", "--steps", "1", "--workers", "0"]) in (0, 1)
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:5] == ["umup", "depth", "1", "depth", "2"]


def test_the_command_passes_its_options_on(monkeypatch):
    seen = {}

    def record(config, **options):
        seen.update(options, config=config)
        return cc.Report(config.scheme, "width", (64, 128), 1, [])

    monkeypatch.setattr(cc, "coordcheck", record)
    options = "--seed 5 --seeds 2 --batch-size 3 --steps 7 --lr 2^-3 --heads 2 --widths 64,128 --workers 0 --quiet"
    assert main([*options.split(), "--scheme", "mup", "--layers", "1", "--base-width", "64"]) == 0
    assert list(seen.pop("seeds")) == [5, 6]
    c = seen.pop("config")
    assert (c.scheme, c.layers, c.base_width, c.seq_len) == ("mup", 1, 64, 16)
    assert seen == {
        "widths": [64, 128], "depths": (), "heads": 2, "steps": 7, "batch_size": 3, "lr": 0.125, "workers": 0,
        "progress": False,
    }  # fmt: skip


def test_other_processes_find_the_same(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = []
    for workers in ("0", "2"):
        main([*QUICK[:-1], workers, "--widths", "16,32", "--quiet", "--json"])
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--widths", "64"], "--widths: 64 gives no slope; name two or more that differ"),
        (["--widths", "64,64"], "--widths: 64 gives no slope"),
        (["--widths", "64,x"], "--widths: 'x' is not a whole number"),
        (["--widths", "64,72"], "--width: 72 is not a multiple of --head-dim 16"),
        (["--widths", "64,128", "--head-dim", "96"], "--width: 128 is not a multiple of --head-dim 96"),
        (["--depths", "2,0"], "--layers: 0 is too small"),
        (["--depths", "2,4", "--widths", "64,128"], "--widths: leave it out; the check is over --depths"),
        (["--depths", "2,4", "--layers", "3"], "--layers: leave it out; the check is over --depths"),
        (["--depths", "2,4", "--heads", "4"], "--heads: 4 has to divide every width of a check over --widths"),
        (["--width", "64"], "--width: leave it out; the check is over --widths"),
        (["--widths", "32,64", "--heads", "3"], "--heads: 3 has to divide every width"),
        (["--heads", "0"], "--heads: 0 has to divide every width"),
        (["--steps", "0"], "--steps: 0 is too small; the least is 1"),
        (["--seeds", "0"], "--seeds: 0 is too small"),
        (["--seed", "-1"], "--seed: -1 is too small"),
        (["--workers", "-1"], "--workers: -1 is too small"),
        (["--batch-size", "0"], "--batch-size: 0 is too small"),
        (["--lr", "0"], "--lr: 0.0 is not a positive finite number"),
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--scheme", "nope"], "--scheme: 'nope' is unknown"),
        (["--plot", "figure.doc"], "--plot: figure.doc does not end with"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_named_in_one_line(refused, options, message):
    assert message in refused(main, [*options, "--workers", "0"] if "--workers" not in options else options)


def test_the_help_has_each_option_once_with_the_default_of_the_check(capsys):
    with pytest.raises(SystemExit):
        main(["--help-all"])
    text = " ".join(capsys.readouterr().out.partition("the network:")[2].split())
    assert text.count("--seq-len N") == text.count("--layers N") == text.count("--width N") == 1
    assert "--seq-len N s, tokens in a sequence (default: 16)" in text


def test_the_picture_has_a_panel_for_every_step(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.svg"
    assert main([*QUICK, "--steps", "2", "--quiet", "--plot", str(path)]) == 0
    svg = path.read_text()
    for title in (
        "at initialization",
        *(f"{what}, step {n}" for n in (1, 2) for what in ("effect of updates", "change since init")),
    ):
        assert f"<!-- {title}" in svg, title
    assert "<!-- umup: PASS -->" in svg
    assert [file.name for file in tmp_path.iterdir()] == ["figure.svg"]


def test_without_matplotlib_the_table_is_shown_and_the_mend_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as end:
        main([*QUICK, "--plot", "figure.png"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert install_hint("plot") in err
    assert "PASS" in out
