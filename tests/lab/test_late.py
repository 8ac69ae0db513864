"""The late check: what it measures, what it lets pass, and what it does not."""

import json
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from microumup.config import DECAYS, TrainConfig
from microumup.engine import Tensor
from microumup.fp8 import LINEARS
from microumup.lab import coordcheck, late
from microumup.lab.late import MOMENTS, Report, expected, parts, reading, updates
from microumup.lab.scales import loss_with_logits
from microumup.lab.slopes import row_of
from microumup.model import init_params
from microumup.optim import AdamW
from microumup.parametrization import SCHEMES, one
from microumup.plan import plan

WIDTHS = (32, 64, 128)
HIDDEN = [name for name in LINEARS if name != "head"]


def small(scheme="umup", steps=24, **options):
    """So few steps that a check is done in two seconds; two widths, a factor of 4 apart, tell 1/2 from 0."""
    c = TrainConfig(
        scheme=scheme, steps=steps, seq_len=16, batch_size=8, weight_decay=2 / steps, **options
    )  # fmt: skip
    return replace(c, lr=late.PART_OF_LR * c.eta)


def check(scheme="umup", decays=(), **options):
    return late.late(replace(small(scheme), **options), widths=(32, 128), seeds=(0, 1), decays=decays)


def failures(report, decay="independent"):
    return {(row.measure, row.tensor): row.verdict for row in late.failed(report.rows[decay])}


# ---------------------------------------------------------------------------------------------------------------------
# The verdict on trainings


@pytest.mark.parametrize("scheme", ["umup", "umup-iclr", "mup", "mup-table2"])
def test_what_transfers_passes_with_independent_decay_and_fails_with_coupled(scheme):
    report = check(scheme, decays=["coupled"])
    assert report.passed
    found = failures(report, "coupled")
    assert [found.get(("share", name)) for name in HIDDEN].count("too small") > 3  # noise may hide some at two seeds
    assert all(measure == "share" for measure, _ in found)
    own, other = reading(report).splitlines()
    assert own.startswith("PASS: from width 32 to 128, with independent decay")
    assert other.startswith("coupled decay, for comparison: FAIL")
    assert "Look first at the factor of λ in weight decay" in other


def test_coupled_decay_falls_as_the_learning_rate_factor_does():
    for scheme, power in (("umup", -0.5), ("mup", -1.0)):
        report = late.late(small(scheme, decay="coupled"), widths=(32, 128), seeds=(0,))
        assert not report.passed
        rows = {(row.measure, row.tensor, row.step): row.slope for row in report.rows["coupled"]}
        for name in HIDDEN:  # what decay takes, relative to what is there: exact but for rounding
            for moment in MOMENTS:
                assert rows["update", name, moment] + rows["share", name, moment] == pytest.approx(power, abs=0.02)


def test_sp_fails_as_its_updates_grow():
    report = check("sp", weight_decay=2**-7)  # with more it would be all of an update
    assert {("update", name): "too large" for name in ("q", "v", "up")}.items() <= failures(report).items()
    assert "Look first at C, the learning rate factor, of the" in reading(report)
    assert reading(report).endswith("One learning rate for all is too high for wide models.")


def test_a_hidden_learning_rate_of_1_is_not_blamed_on_decay(monkeypatch):
    umup = SCHEMES["umup"]
    monkeypatch.setitem(SCHEMES, "umup", umup._replace(hidden=umup.hidden._replace(C=one)))
    report = check()
    assert {("update", name): "too large" for name in ("q", "v", "up")}.items() <= failures(report).items()
    assert "C, the learning rate factor, of the hidden weights" in reading(report)


def test_decay_within_the_gradient_is_seen_for_what_it_takes(monkeypatch):
    """L2 in place of decoupled decay: Adam makes of it another step of the same size, whatever λ."""
    step = AdamW.step

    def l2(self, grads, s):
        lam, self.weight_decay = self.weight_decay, 0.0
        step(self, {name: g + lam * self.params[name] for name, g in grads.items()}, s)
        self.weight_decay = lam

    right = late.run(small(width=32))
    monkeypatch.setattr(AdamW, "step", l2)
    wrong = late.run(small(width=32))
    assert all(wrong["share", name, 0] < 0.5 * right["share", name, 0] for name in HIDDEN)


def test_what_diverges_is_too_large():
    report = late.late(replace(small("sp"), lr=1e30), widths=(32, 64), seeds=(0,))
    assert not report.passed
    assert all(row.slope == inf for row in report.rows["independent"] if row.step == 100)


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def test_the_parts_of_an_update_are_those_that_were_put_into_it():
    """Δw = 0.1 w from decay, and 0.3 of another weight: with both, in x's they are known."""
    c = small(width=32, layers=1)
    w, other = init_params(c, 0, np.float64), init_params(c, 1, np.float64)
    without = {name: w[name] + 0.3 * other[name] for name in w}
    after = {name: without[name] - 0.1 * w[name] for name in w}
    tokens, targets = np.random.default_rng(0).integers(256, size=(2, 4, 16))
    leaves = {name: Tensor(value, name) for name, value in w.items()}
    loss = loss_with_logits(leaves, tokens, targets, plan(c, tokens.size))
    found = parts(loss, after, without)
    for name in LINEARS:
        update, share = found["update", name], found["share", name]
        assert update * share == pytest.approx(0.1)  # decay's part over what was there
        assert update == pytest.approx(
            (0.3**2 + 0.1**2) ** 0.5, rel=0.4
        )  # of random weights the rest is at a right angle
    same = parts(loss, after, after)
    assert all(same["share", name] == 0 for name in LINEARS)


def test_the_first_and_the_last_update_are_among_the_four():
    assert updates(128) == [0, 13, 64, 127]
    assert updates(8) == [0, 1, 4, 7]


def test_independent_decay_takes_what_lambda_and_the_schedule_say():
    """The last update has s = 0.1, the first one of a warm-up of 6 steps 1/6; fully-independent decay has no s."""
    for decay, first, last in (("independent", 1 / 6, 0.1), ("fully-independent", 1, 1)):
        found = late.run(small(width=32, decay=decay))
        for moment, s in ((0, first), (100, last)):
            taken = found["update", "q", moment] * found["share", "q", moment]
            assert taken == pytest.approx(s * 2 / 24, rel=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# The verdict on numbers


def made_up(update=0.0, share=0.0, head=(0.0, 0.0), moment=50, decay="independent"):
    """A report in which all is right but the slopes of hidden linears, or the readout's, at a moment."""
    rows = []
    for measure, slope, of_head in (("update", update, head[0]), ("share", share, head[1])):
        for name in LINEARS:
            for at in MOMENTS:
                power = (of_head if name == "head" else slope) if at == moment else 0.0
                rms = np.array([[0.1 * width ** (power + dither) for width in WIDTHS] for dither in (-0.01, 0, 0.01)])
                rows.append(row_of(measure, name, at, WIDTHS, rms, expected(measure, name), by_chance=True))
    return Report("umup", WIDTHS, 128, 2**-6, decay, {decay: rows})


@pytest.mark.parametrize(
    ("slopes", "words"),
    [
        ({}, "PASS: from width 32 to 128, with independent decay, λ = 0.0156, all 16 slopes"),
        ({"head": (0.5, -0.5), "moment": 0}, "PASS"),
        ({"update": 0.2, "share": -0.2}, "PASS"),
        ({"share": -0.5}, "should not change with width: s(t) λ, without η C: decay's share in the update of"),
        ({"share": -0.5}, "goes as width^-0.5 where width^0 is right, 50 % into the run. One λ for all is too low"),
        ({"share": 0.5}, "One λ for all is too high for wide models."),
        ({"update": 0.5, "share": -0.5}, "FAIL: with independent decay, λ = 0.0156, 14 of 16 slopes"),
        ({"update": 0.5, "share": -0.5}, "C, the learning rate factor, of the hidden weights"),
        ({"update": 0.5, "share": -0.5}, "the relative update of q"),
        ({"update": -0.5}, "the factor of λ in weight decay"),  # it shrinks as the updates do
        ({"head": (1.0, -1.0)}, "C, the learning rate factor, of the output weights"),
    ],
)  # fmt: skip
def test_the_reading_names_the_rule(slopes, words):
    report = made_up(**slopes)
    assert words in reading(report)
    assert report.passed == reading(report).startswith("PASS")


# ---------------------------------------------------------------------------------------------------------------------
# The command

QUICK = ["--late", "--widths", "32,64", "--seeds", "1", "--steps", "8", "--batch-size", "2", "--workers", "0"]


@pytest.fixture
def found(monkeypatch):
    """The command's trainings are not run; it is told what they found. What it asked for is noted."""
    seen = {}

    def record(config, **options):
        seen.update(options, config=config)
        return made_up(share=-0.5, decay=config.decay) if config.decay == "coupled" else made_up()

    monkeypatch.setattr(late, "late", record)
    return seen


def test_the_command_asks_for_all_decays_and_judges_independent_decay(found, capsys):
    assert coordcheck.main(["--late", "--quiet", "--json"]) == 0
    c = found["config"]
    assert (c.decay, c.steps, c.batch_size, c.seq_len, c.weight_decay) == ("independent", 128, 16, 16, 2 / 128)
    assert c.lr == 1.5 / 4
    assert (found["decays"], found["widths"], list(found["seeds"])) == (DECAYS, WIDTHS, [0, 1, 2])
    result = json.loads(capsys.readouterr().out)
    assert (result["passed"], result["decay"], len(result["rows"]["independent"])) == (True, "independent", 64)
    assert result["reading"].startswith("PASS")


def test_the_command_judges_the_decay_that_is_named(found, capsys):
    options = "--late --decay coupled --weight-decay 0.1 --steps 50 --lr 2^-6 --scheme mup --widths 64,128 --layers 1"
    assert coordcheck.main(options.split()) == 1
    c = found["config"]
    assert (c.scheme, c.decay, c.weight_decay, c.steps, c.lr, c.layers) == ("mup", "coupled", 0.1, 50, 2**-6, 1)
    assert (found["decays"], found["widths"]) == ((), [64, 128])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("  q ") and "too small" in line)
    assert line.split()[4:6] == ["50", "%"]
    assert [float(x) for x in line.split()[-4:]] == [0, 0, -0.5, 0]
    assert out.splitlines()[-1].startswith("FAIL")


def test_a_picture_is_drawn_of_what_is_really_run(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "late.svg"
    assert coordcheck.main([*QUICK, "--plot", str(path)]) in (0, 1)
    svg = path.read_text()
    for words in ("first update", "after 10 % of the steps", "last update", "share of decay", "coupled decay"):
        assert f"<!-- {words}" in svg
    assert capsys.readouterr().out.splitlines().count("relative update") == len(DECAYS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--late", "--depths", "2,4"], "--depths: leave it out; --late is over --widths"),
        (["--late", "--heads", "2"], "--heads: leave it out; --late is over --widths"),
        (["--decay", "coupled"], "--decay: leave it out; it goes with --late"),
        (["--weight-decay", "0.1"], "--weight-decay: leave it out; it goes with --late"),
        (["--late", "--decay", "none"], "--decay: invalid choice: 'none'"),
        (["--late", "--weight-decay", "2"], "--weight-decay: 2.0 is no share"),
        (["--late", "--weight-decay", "0"], "--weight-decay: with 0 there is no decay to look at"),
        (["--late", "--steps", "4"], "--steps: 4 are too few to look at four of them; take 8 or more"),
        (["--late", "--widths", "64"], "--widths: 64 gives no slope"),
        (["--late", "--widths", "64,72"], "--width: 72 is not a multiple of --head-dim 16"),
        (["--late", "--lr", "0"], "--lr: 0.0 is not a positive finite number"),
    ],
    ids=" ".join,
)
def test_bad_input_is_named_in_one_line(refused, options, message):
    assert message in refused(coordcheck.main, [*options, "--workers", "0"])
