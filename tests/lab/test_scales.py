import json
import sys
from dataclasses import replace
from math import exp, log, sqrt

import numpy as np
import pytest

from microumup import files
from microumup.backend import install_hint
from microumup.config import ModelConfig, TrainConfig
from microumup.corpora import ByteTokenizer
from microumup.data import Corpus
from microumup.engine import Tensor
from microumup.fp8 import E4M3, E5M2, FORMATS, LINEARS, RECIPES, quantize
from microumup.lab import scales
from microumup.lab.expected import expected_rms
from microumup.lab.scales import fresh_loss, main, measured_rms, note, plot, table
from microumup.model import forward, init_params
from microumup.multipliers import UnitScaled
from microumup.plan import plan
from microumup.ranges import Range, linear_ranges, log_scales, measure, read_scales
from microumup.records import Command
from microumup.run_dir import RunDir, identity
from microumup.trainer import Trainer

SMALL = ModelConfig(width=64, layers=2, seq_len=64, head_dim=16)
TINY = ModelConfig(width=16, layers=1, seq_len=8, head_dim=4, vocab_size=32)


def offenders(config, batch_size, expected=None):
    """Every tensor whose RMS is not within 0.8 … 1.25 of the expected, with the ratio."""
    measured, expected = measured_rms(fresh_loss(config, batch_size)), expected or expected_rms(config)
    assert measured.keys() == expected.keys()
    ratios = {name: measured[name] / expected[name] for name in expected}
    return {name: round(ratio, 3) for name, ratio in ratios.items() if not 0.8 <= ratio <= 1.25}


# ---------------------------------------------------------------------------------------------------------------------
# Unit scale at initialization


@pytest.mark.parametrize(
    ("config", "batch_size"),
    [
        (SMALL, 16),
        (replace(SMALL, width=256, head_dim=64, seq_len=256), 4),  # shape of the paper's proxy model
        (replace(SMALL, width=1024, head_dim=64), 2),
        (replace(SMALL, layers=6), 16),
        (replace(SMALL, alpha_res=2.0, alpha_res_attn_ratio=0.5, alpha_ffn_act=4.0, alpha_attn_softmax=0.5), 16),
        (replace(SMALL, alpha_res=0.5, alpha_res_attn_ratio=2.0, alpha_ffn_act=0.25, alpha_loss_softmax=2.0), 16),
        (replace(SMALL, fp8="fp8"), 16),
    ],
    ids=["width 64", "width 256", "width 1024", "6 layers", "other α", "yet other α", "FP8"],
)
def test_every_tensor_of_umup_starts_at_the_scale_expected_of_it(config, batch_size):
    assert offenders(config, batch_size) == {}


def hidden(A, A_backward, batch_tokens):
    return A_backward == A


def readout(A, A_backward, batch_tokens):
    return A_backward != A


@pytest.mark.parametrize(
    ("op", "where", "without"),
    [
        ("linear", hidden, {"y": 1.0}),
        ("linear", hidden, {"dx": 1.0}),
        ("linear", hidden, {"dw": 1.0}),
        ("linear", readout, {"y": 1.0}),
        ("linear", readout, {"dx": 1.0}),
        ("linear", readout, {"dw": 1.0}),
        ("embedding", None, {"dw": 1.0}),
        ("attention", None, {"y": 1.0}),
        ("attention", None, {"dx": 1.0}),
        ("gated_silu", None, {"y": 1.0}),
        ("gated_silu", None, {"dx": 1.0}),
        ("residual", None, {"a": 1.0}),
        ("residual", None, {"b": 1.0}),
        ("residual", None, {"dbase": 1.0}),
        ("residual", None, lambda scale: {"dbranch": scale.a, "dbase": 1.0}),  # a is not delayed
        ("cross_entropy", None, {"dx": 1.0}),
        ("cross_entropy", None, lambda scale: {"dx": scale.dx / (256 / sqrt(255))}),  # 1/b is dropped, and no more
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_scales_are_off_without_any_one_factor(monkeypatch, op, where, without):
    expected = expected_rms(SMALL)
    rule = getattr(UnitScaled, op)

    def changed(*args):
        scale = rule(*args)
        if where and not where(*args):
            return scale
        return scale._replace(**(without(scale) if callable(without) else without))

    monkeypatch.setattr(UnitScaled, op, staticmethod(changed))
    assert offenders(SMALL, 8, expected)


def test_expected_departures_are_those_of_the_rules():
    # Branches that hardly count leave tokens independent, vast V and D keep them so: nothing but the factors is left.
    s, K, alpha = 256, 64, 2.0
    sizes = {"width": 2**20, "head_dim": K, "layers": 1, "seq_len": s, "vocab_size": 2**21}
    expected = expected_rms(ModelConfig(**sizes, alpha_res=1e-5, alpha_attn_softmax=alpha, alpha_ffn_act=alpha))
    # Table 4, written out once more
    attention_sigma = exp((1 - 1 / (1 + 4 * K / alpha**2)) * log(sqrt(log(s) / s)))
    silu_weight = 1 / (1 + 1 / alpha**2)
    silu_sigma = exp(silu_weight * log(1 / sqrt(2)) + (1 - silu_weight) * log(1 / 2))
    # Uniform attention's exact mean over positions, and integrals over a normal gate
    harmonic, squares = (sum(1 / n**power for n in range(1, s + 1)) for power in (1, 2))
    uniform = sqrt(harmonic / s) / attention_sigma
    scores = alpha / sqrt(K) * sqrt((harmonic - squares) / s) / attention_sigma
    u = np.linspace(-10, 10, 20_001)
    silu = u / (1 + np.exp(-alpha * u))
    up, gate = (sqrt(np.average(f**2, weights=np.exp(-(u**2) / 2))) / silu_sigma for f in (silu, np.gradient(silu, u)))
    dy = sqrt(2)  # of the head's dx, √(V/D), all that reaches the trunk
    departures = {
        "head.y": 2**-10, "head.dx": dy, "embedding.dy": dy,
        "layer0.attention.y": uniform, "layer0.v.dy": uniform * dy, "layer0.v.dw": uniform * dy,
        "layer0.q.dy": scores * dy, "layer0.k.dy": scores * dy,
        "layer0.attn_norm.dy": sqrt(uniform**2 + 2 * scores**2) * dy,
        "layer0.gated_silu.y": up, "layer0.down.dx": sqrt(4 / 11) * dy, "layer0.up.dx": up * dy,
        "layer0.gate.dx": gate * dy, "layer0.ffn_norm.dy": sqrt(up**2 + gate**2) * dy,
    }  # fmt: skip
    assert {name: expected[name] for name in departures} == pytest.approx(departures, rel=1e-4)


@pytest.mark.parametrize(("seq_len", "excess"), [(256, 1.051), (16, 1.104)])
def test_attention_starts_above_1_by_what_its_model_lacks(seq_len, excess):
    config = ModelConfig(width=2**14, head_dim=2**12, layers=1, seq_len=seq_len, vocab_size=2**20)
    assert expected_rms(config)["layer0.attention.y"] == pytest.approx(excess, abs=0.001)


def test_tokens_with_a_past_in_common_make_the_attention_of_later_layers_larger():
    assert expected_rms(SMALL)["layer1.attention.y"] == pytest.approx(1.8, abs=0.05)
    assert expected_rms(replace(SMALL, seq_len=256))["layer1.attention.y"] == pytest.approx(2.9, abs=0.1)


def test_expected_rms_knows_no_other_scheme():
    with pytest.raises(ValueError, match="--scheme mup"):
        expected_rms(ModelConfig(scheme="mup"))


def test_measured_rms_is_that_of_the_tape():
    out = fresh_loss(TINY, 2)
    logits = out.inputs[0]
    x, w = logits.inputs
    rms = measured_rms(out)
    found = {"head.x": x.data, "head.w": w.data, "head.y": logits.data, "head.dx": x.grad, "head.dw": w.grad,
             "head.dy": logits.grad, "final_norm.y": x.data, "final_norm.dy": x.grad}  # fmt: skip
    for name, array in found.items():
        assert rms[name] == pytest.approx(sqrt(np.mean(np.float64(array) ** 2)), rel=1e-6), name
    # q, k and v share their x: its gradient is the sum of three that hardly overlap
    parts = [rms[f"layer0.{name}.dx"] for name in "qkv"]
    assert rms["layer0.attn_norm.dy"] == pytest.approx(sqrt(sum(part**2 for part in parts)), rel=0.1)
    assert rms["layer0.attn_norm.dy"] > 1.01 * max(parts)


def test_measuring_asks_for_gradients():
    params = {name: Tensor(w, name) for name, w in init_params(TINY).items()}
    ids = np.zeros((1, 8), np.int64)
    for look in (measured_rms, linear_ranges):
        with pytest.raises(ValueError, match="keep=True"):
            look(scales.loss_with_logits(params, ids, ids, plan(TINY, ids.size)))


# ---------------------------------------------------------------------------------------------------------------------
# Ranges


def test_a_range_counts_what_the_cast_flushes_and_saturates():
    tiny, limit = E4M3.min_subnormal, E4M3.max
    x = np.float32([0, -0.0, tiny / 2, -tiny / 2, tiny * 0.51, 1, -limit, limit * 1.01, -np.inf, 1e-30])
    assert measure(x, E4M3) == Range("e4m3", 10, np.inf, np.inf, 0.3, 0.2)
    assert measure(x[:8].reshape(2, 4), E5M2).underflow == 0
    assert measure(x[:8], E5M2).saturated == 0
    assert measure(x[:2], E4M3) == Range("e4m3", 2, 0, 0, 0, 0)
    assert measure(np.float32([3, -4]), None) == Range("none", 2, pytest.approx(sqrt(12.5)), 4, 0, 0)


def test_every_operand_of_every_linear_is_held_against_the_format_it_is_cast_to():
    config = replace(TINY, layers=2)
    ranges = linear_ranges(fresh_loss(config, 2))
    nodes = [f"layer{layer}.{kind}" for layer in range(2) for kind in LINEARS[:-1]] + ["head"]
    assert set(ranges) == {f"{node}.{tensor}" for node in nodes for tensor in ("x", "w", "dy")}
    e5m2 = {f"layer{layer}.{kind}.x" for layer in range(2) for kind in ("o", "down")}
    assert {name for name, r in ranges.items() if r.format == "e5m2"} == e5m2
    assert {r.format for name, r in ranges.items() if name not in e5m2} == {"e4m3"}
    ranges = linear_ranges(fresh_loss(config, 2), RECIPES["fp8-iclr"])
    assert ranges["layer1.q.dy"].format == "e5m2"
    assert ranges["head.w"].format == "none"


def test_operands_are_looked_at_before_the_cast():
    params = init_params(TINY)
    params["head"][0, :] = 10_000
    ids = np.arange(16).reshape(2, 8)
    r = linear_ranges(scales.kept_loss(params, ids, ids, replace(TINY, fp8="fp8")))["head.w"]
    assert r.absmax == 10_000
    assert r.saturated == 1 / 32


def test_why_mup_does_not_train_in_fp8():
    flushed = {}
    for scheme in ("umup", "mup"):
        ranges = linear_ranges(fresh_loss(replace(SMALL, scheme=scheme), 16))
        flushed[scheme] = [r.underflow for name, r in ranges.items() if name.endswith(".dy")]
    assert max(flushed["umup"]) < 0.05
    assert min(flushed["mup"]) > 0.6  # of gradients of a mean loss, around 2^-13


# ---------------------------------------------------------------------------------------------------------------------
# The log, the command, the figure


@pytest.fixture
def run_dir(tmp_path, corpus, monkeypatch):
    """A run of two steps, with its checkpoint and without a log."""
    monkeypatch.setattr(scales, "load_corpus", lambda *_, **__: corpus)
    config = TrainConfig(width=16, head_dim=4, layers=1, seq_len=8, batch_size=2, steps=2)
    trainer = Trainer(config, corpus)
    with RunDir.create(tmp_path, config, corpus, Command(save_every=1)) as run:
        loss, *_ = trainer.update(0)
        run.log([{"step": 0, "loss": loss}])
        run.save_if_due(trainer.state, 1, 0.0)
    return tmp_path


def write_log(run_dir, steps):
    out = fresh_loss(TINY, 2)
    for step in steps:
        log_scales(run_dir, step, out)
    return linear_ranges(out)


def test_what_is_logged_is_read_back(tmp_path):
    assert read_scales(tmp_path) == {}
    ranges = write_log(tmp_path, [0, 10, 20, 5, 10])  # resumed from step 5, and logged more often
    assert list(read_scales(tmp_path).items()) == [(step, ranges) for step in (0, 5, 10, 20)]
    line = json.loads((tmp_path / "scales.jsonl").read_text().splitlines()[1])
    assert line["step"] == 10
    assert set(line["tensors"]["head.dy"]) == {"format", "size", "rms", "absmax", "underflow", "saturated"}


@pytest.mark.parametrize("damage", ['{"step": 2, "tens', '{"step": 2}', "3", '{"step": 2, "tensors": {"q": {}}}'])
def test_a_damaged_line_of_the_log_is_named(tmp_path, damage):
    write_log(tmp_path, [0])
    [record] = files.read_lines(tmp_path / "scales.jsonl")  # as an older version wrote it, without a checksum
    (tmp_path / "scales.jsonl").write_text(f"{json.dumps(record)}\n{damage}\n")
    with pytest.raises(ValueError, match=r"scales.jsonl: line 2 is damaged"):
        read_scales(tmp_path)


def test_a_line_of_the_table():
    found = table({"head.dy": Range("e4m3", 1, 2.0, 2.0**5, 0.125, 0.0)}, {"head.dy": 1.0})
    title, line = found.splitlines()
    assert line.split()[:8] == ["head.dy", "e4m3", "2^1.0", "2^0.0", "2^5.0", "12.50", "%", "0.00"]
    zero = title.index("2^0")
    assert [line.index(mark) - zero for mark in "[:ox]"] == [-9, -6, 1, 5, 9]


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0.00 %"), (1e-9, "<0.01 %"), (4e-5, "<0.01 %"), (6e-5, "0.01 %"), (0.99999, ">99.99 %"), (1.0, "100.00 %")],
)
def test_a_share_that_is_not_zero_does_not_look_like_it(share, shown):
    for shares in ({"underflow": share, "saturated": 0.0}, {"underflow": 0.0, "saturated": share}):
        line = table({"q.x": Range("e4m3", 10**9, 2.0, 2.0**10, **shares)}).splitlines()[1]
        found = line.partition("2^10.0")[2].split()[:4]
        assert " ".join(found) == " ".join(shown if value else "0.00 %" for value in shares.values())


def test_an_element_past_the_formats_max_is_seen_among_very_many():
    x = np.ones(10**6, np.float32)
    x[0] = 1000
    assert "<0.01 %" in table({"q.x": measure(x, E4M3)})


@pytest.fixture(scope="module")
def learned():
    """A model that has learned to count on by 1 to 8, and p and onehot of a batch as the loss has them."""
    config = TrainConfig(width=64, head_dim=16, layers=1, seq_len=16, batch_size=8, steps=100)
    text = (np.random.default_rng(0).integers(1, 9, 4000).cumsum() % 256).astype(np.uint8)
    trainer = Trainer(config, Corpus("counting", text, text, ByteTokenizer()))
    for step in range(config.steps):
        trainer.update(step)
    tokens, targets = text[:128].reshape(8, 16), text[1:129].reshape(8, 16)
    out = scales.kept_loss(trainer.params, tokens, targets, config)
    z = np.float64(forward(trainer.params, tokens, trainer.plan).data)
    p = np.exp(z - z.max(-1, keepdims=True))
    return linear_ranges(out), p / p.sum(-1, keepdims=True), np.eye(256)[targets]


def test_a_trained_heads_dy_is_flushed_where_next_to_no_probability_is(learned):
    """The reason that `note` gives, in numbers."""
    ranges, p, onehot = learned
    r, dy = ranges["head.dy"], p - onehot
    dy *= r.rms / sqrt(np.mean(dy**2))  # the factor
    flushed = (quantize(np.float32(dy), E4M3) == 0) & (dy != 0)
    assert flushed.mean() == pytest.approx(r.underflow, abs=1e-3)
    assert r.underflow > 0.5
    assert p[flushed].max() < 1e-3
    lost = (dy[flushed] ** 2).sum() / (dy**2).sum()
    assert lost < r.underflow * (E4M3.min_subnormal / 2 / r.rms) ** 2 < 1e-3
    squares = np.sort(dy.ravel() ** 2)[::-1].cumsum()
    assert (squares < 0.99 * squares[-1]).mean() < 0.1  # few elements carry the RMS


def test_the_note_stands_where_that_is_so(learned):
    r = learned[0]["head.dy"]
    assert note(learned[0]).startswith(f"\nhead.dy: {r.underflow:.0%} is flushed, but at most ")
    assert note({"head.dy": r._replace(underflow=0.05)}) == ""
    assert note({"head.dy": r._replace(rms=2.0**-13)}) == ""  # µP's: what is flushed is what there is
    assert note({"head.dy": r._replace(rms=0.0)}) == ""
    assert note({"head.dy": r._replace(format="none", underflow=0.0)}) == ""
    assert note({"layer0.q.dy": r}) == ""


def test_the_verdict_counts_what_lies_out_of_range():
    r = Range("e4m3", 8, rms=1.0, absmax=2.0, underflow=0.0, saturated=0.0)
    ranges = {"layer0.q.x": r, "layer0.q.w": r._replace(rms=2.0**9), "layer0.q.dy": r._replace(rms=2.0**-10)}
    ranges |= {"head.dy": r._replace(rms=2.0**-12), "head.x": r._replace(format="none", rms=1e9)}
    assert scales.verdict({"layer0.q.x": r}) == "1 of 1 RMS lie in the range of their format"
    words = "2 of 5 RMS lie in the range of their format; above it w of 1 linear; below it dy of 2 linears"
    assert scales.verdict(ranges) == words


def test_the_command_says_why_so_much_is_flushed(run_dir, capsys):
    ranges = write_log(run_dir, [0])
    log = {"head.dy": ranges["head.dy"]._replace(rms=1.0, underflow=0.83)._asdict()}
    files.append(run_dir / "scales.jsonl", {"step": 5, "tensors": log}, owner=identity(run_dir))
    assert main([str(run_dir)]) == 0
    before, _, after = capsys.readouterr().out.partition("step 5\n")
    assert "probability" not in before
    assert "head.dy: 83% is flushed" in after


@pytest.mark.parametrize("rms", [0.0, 1e-30, 1e30, float("inf"), float("nan")])
def test_a_scale_off_the_axis_is_drawn_at_its_end(rms):
    zero = (lines := table({"q.x": Range("e4m3", 1, rms, rms, 0.0, 0.0)}).splitlines())[0].index("2^0")
    assert lines[1].index("o") - zero == (-24 if rms < 1 else 16)


def test_the_command_shows_a_new_model(capsys):
    assert main(["--layers", "1", "--json"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert "e4m3: min subnormal 2^-9.0, min normal 2^-6.0, max 2^8.8" in shown
    assert "e5m2: min subnormal 2^-16.0, min normal 2^-14.0, max 2^15.8" in shown
    result = json.loads(last)
    assert result["formats"]["e4m3"] == {"min subnormal": 2**-9, "min normal": 2**-6, "max": 448}
    tensors = result["steps"]["0"]
    assert sum(line.split()[0] in tensors for line in shown if line) == 24
    assert all(0.8 < r["rms"] / result["expected_rms"][name] < 1.25 for name, r in tensors.items())


def test_the_recipe_of_the_command_is_that_of_the_model(capsys):
    options = ["--layers", "1", "--width", "16", "--head-dim", "4", "--quiet", "--json"]
    assert main([*options, "--fp8", "all.dy=e5m2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    formats = {name: r["format"] for name, r in json.loads(lines[0])["steps"]["0"].items()}
    assert formats["head.dy"] == "e5m2"
    assert formats["head.x"] == "none"


def test_the_command_shows_the_first_and_last_logged_step_of_a_run(run_dir, capsys):
    write_log(run_dir, [0, 10, 20])
    assert main([str(run_dir), "--json"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("step")] == ["step 0", "step 20"]
    assert list(json.loads(last)["steps"]) == ["0", "20"]


def test_the_command_looks_at_the_checkpoint_of_a_run_without_a_log(run_dir, corpus, capsys):
    assert main([str(run_dir), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["steps"]
    run = RunDir.resume(run_dir, corpus)
    run.close()
    trainer, seen = Trainer(run.config, corpus), {}
    trainer.load_state(run.state, run.step)
    trainer.update(1, watch=lambda _, out: seen.update(linear_ranges(out)))
    assert found["1"].keys() == seen.keys()
    for name, r in seen.items():  # the command runs the readable ops, training the fast ones
        assert found["1"][name]["format"] == r.format
        assert list(found["1"][name].values())[1:] == pytest.approx(r[1:], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheme", "nope"], "--scheme: 'nope' is unknown"),
        (["--plot", "figure.doc"], "--plot: figure.doc does not end with .png, .svg or .pdf"),
        (["nowhere"], "nowhere holds no run"),
        (["RUN_DIR", "--width", "64"], "leave out --width"),
        (["RUN_DIR", "--preset", "tiny"], "leave out --preset"),
        (["--layers", "1", "--width", "16", "--quiet", "--plot", "no/such/place.png"], "no/such"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_named_in_one_line(run_dir, refused, options, message):
    assert message in refused(main, [str(run_dir) if option == "RUN_DIR" else option for option in options])


def test_a_run_with_a_config_that_is_none(run_dir, capsys):
    (run_dir / "config.json").write_text('{"text": [], "depth": 3}')
    with pytest.raises(SystemExit):
        main([str(run_dir)])
    assert "config.json is not a config of microumup" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "titles"), [([0], 1), ([0, 5, 10], 5)])
def test_the_figure_has_the_first_and_last_step_and_the_way_between(tmp_path, steps, titles):
    pytest.importorskip("matplotlib")
    rms = {step: {name: r.rms * 2**step for name, r in write_log(tmp_path, []).items()} for step in steps}
    plot(tmp_path / "figure.svg", rms, "a title")
    svg = (tmp_path / "figure.svg").read_text()
    texts = [f"step {steps[0]}", f"step {steps[-1]}", *(f"{tensor} of every linear" for tensor in ("x", "w", "dy"))]
    assert sum(f"<!-- {text} -->" in svg for text in dict.fromkeys(texts)) == titles
    for fmt in FORMATS:
        for name in ("min subnormal", "min normal", "max"):
            assert svg.count(f"<!-- {fmt} {name} -->") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["figure.svg"]


def test_the_command_draws_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.png"
    assert main(["--layers", "1", "--width", "16", "--quiet", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_table_is_shown_and_the_mend_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as end:
        main(["--layers", "1", "--width", "16", "--plot", "figure.png"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert install_hint("plot") in err
    assert "layer0.down.dy" in out
