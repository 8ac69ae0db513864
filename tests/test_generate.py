import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from conftest import Refused
from small_runs import made
from test_corpora import SENTENCES

from microumup import checkpoint
from microumup import generate as generate_module
from microumup.config import ModelConfig, TrainConfig
from microumup.corpora import ByteTokenizer, train_bpe
from microumup.data import Corpus
from microumup.generate import generate, load_run, load_tokenizer, main
from microumup.model import forward, init_params
from microumup.plan import plan
from microumup.run_dir import RunDir
from microumup.trainer import train

CONFIG = ModelConfig(width=16, head_dim=8, seq_len=12, vocab_size=19, alpha_loss_softmax=4.0)
PARAMS, PLAN = init_params(CONFIG, 0, np.float64), plan(CONFIG, 1)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("prompt_length", [1, 11, 12, 13, 30])
def test_the_cache_changes_nothing(temperature: float, prompt_length: int) -> None:
    prompt = np.arange(prompt_length) % 19
    runs = [
        generate(PARAMS, PLAN, prompt, 40, temperature=temperature, seed=5, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 40


def test_within_seq_len_it_is_the_plain_forward_pass() -> None:
    tokens = [3]
    for _ in range(11):
        tokens.append(int(forward(PARAMS, np.array([tokens]), PLAN).data[0, -1].argmax()))
    assert generate(PARAMS, PLAN, [3], 11, temperature=0) == tokens[1:]


def test_the_seed_decides() -> None:
    runs = [generate(PARAMS, PLAN, [3], 30, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_top_k_keeps_exactly_k_of_equal_tokens() -> None:
    """Of tokens that tie for the last place all were kept: a top_k of 1 drew among them."""
    logits = np.array([1.0, 2.0, 2.0, 2.0, 0.0])
    for k, allowed in ((1, {1}), (2, {1, 2}), (4, {0, 1, 2, 3})):
        drawn = {generate_module._draw(logits, 1.0, k, np.random.default_rng(seed)) for seed in range(200)}
        assert drawn == allowed


def test_top_k_draws_from_the_k_likeliest_alone() -> None:
    likeliest = np.argsort(forward(PARAMS, np.array([[3]]), PLAN).data[0, -1])[-2:]
    drawn = {generate(PARAMS, PLAN, [3], 1, temperature=5.0, top_k=2, seed=seed)[0] for seed in range(40)}
    assert drawn == set(likeliest.tolist())


def test_draws_follow_the_softmax_of_the_scaled_logits() -> None:
    logits = 4.0 * forward(PARAMS, np.array([[3]]), PLAN).data[0, -1]  # α_loss-softmax
    p = np.exp(logits / 0.5)
    p /= p.sum()
    drawn = [generate(PARAMS, PLAN, [3], 1, temperature=0.5, seed=seed)[0] for seed in range(2000)]
    counts = np.bincount(drawn, minlength=19)
    assert np.abs(counts / 2000 - p).max() < 5 * np.sqrt(p.max() / 2000)  # five standard deviations of a count


def test_the_logits_of_a_long_prompt_never_exist() -> None:
    V, T = 8_192, 256
    numbers = plan(ModelConfig(width=16, layers=1, head_dim=8, seq_len=T, vocab_size=V), 1)
    params, prompt = init_params(numbers.config), np.random.default_rng(0).integers(V, size=T - 8)
    generate(params, numbers, prompt, 1)  # what a first call keeps, as the angles of RoPE, is not of interest
    tracemalloc.start()
    try:
        generate(params, numbers, prompt, 4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # the trunk's arrays, the largest of them 2 heads of (T, T), and a few of V; all logits would be 4 T V bytes
    assert peak < T * V, f"{peak:,} bytes, where the logits of the prompt have {4 * T * V:,}"


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="--prompt: is empty"):
        generate(PARAMS, PLAN, [], 5)


@pytest.fixture(scope="module")
def run_dir(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    config = TrainConfig(width=16, head_dim=8, seq_len=16, batch_size=4, steps=60)
    with RunDir.create(path, config, corpus) as run:
        train(config, corpus, run)
    return path


def test_a_run_is_loaded_as_it_was_trained(run_dir: Path, corpus: Corpus) -> None:
    numbers, params, tokenizer = load_run(run_dir)
    assert numbers == plan(ModelConfig(width=16, head_dim=8, seq_len=16), 1)
    assert params["head"].dtype == np.float32
    assert tokenizer.vocab_size == 256


def test_a_run_of_an_older_version_is_loaded(run_dir: Path, tmp_path: Path) -> None:
    before = load_run(run_dir)[0]
    run_dir = Path(copytree(run_dir, tmp_path / "old"))
    arrays, info = checkpoint.load(path := run_dir / "checkpoint.safetensors")
    info["model"] = {"width": 16, "tied_embeddings": False}
    checkpoint.save(path, arrays, info)
    assert load_run(run_dir)[0] == before
    info["model"]["tied_embeddings"] = True
    checkpoint.save(path, arrays, info)
    with pytest.raises(ValueError, match=r"is of another run than config\.json"):
        load_run(run_dir)


def test_the_command_continues_a_prompt(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--prompt", "the peop", "--tokens", "24", "--temperature", "0"]) == 0
    assert "people of the" in capsys.readouterr().out


def test_the_command_prints_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--prompt", "the ", "--tokens", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"prompt", "text", "tokens", "seed"}
    assert result["tokens"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "0"], "--tokens: 0 is too small"),
        (["--temperature", "-1"], "--temperature: -1.0 is too small"),
        (["--temperature", "nan"], "--temperature: nan is too small"),
        (["--top-k", "-1"], "--top-k: -1 is too small"),
        (["--seed", "-1"], "--seed: -1 is too small"),
        (["--prompt", ""], "--prompt: is empty"),
        (["--device", "tpu"], "--device: 'tpu'"),
    ],
)
def test_bad_options_end_in_one_line(run_dir: Path, options: list[str], message: str, refused: Refused) -> None:
    assert message in refused(main, [str(run_dir), *options])


def test_a_directory_without_a_run_is_named(tmp_path: Path, refused: Refused) -> None:
    assert f"{tmp_path} holds no run, there is no config.json in it" in refused(main, [str(tmp_path)])


# ---- Tokenizers of runs ----


def test_a_run_of_bytes_needs_no_file(tmp_path: Path, corpus: Corpus) -> None:
    run = made(tmp_path / "run", TrainConfig(width=32), corpus)
    assert not (run / "tokenizer.json").exists()
    assert isinstance(load_tokenizer(run), ByteTokenizer)


def test_a_saved_bpe_is_the_same(tmp_path: Path, corpus: Corpus) -> None:
    pytest.importorskip("tokenizers", reason="BPE needs the extra `data`")
    tokenizer = train_bpe([SENTENCES.encode()], 300)
    run = made(tmp_path / "run", TrainConfig(width=32, vocab_size=300), replace(corpus, tokenizer=tokenizer))
    loaded = load_tokenizer(run)
    text = SENTENCES[:200] + "日本 🙂"
    assert loaded.vocab_size == 300
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert loaded.decode(loaded.encode(text).astype(np.int64)) == text
    assert loaded.encode("").dtype == np.uint16
    assert len(loaded.encode("")) == 0
    with pytest.raises(ValueError, match="--prompt: a byte in it is no UTF-8"):
        loaded.encode("\udcff")
    for content in ("{}", ""):
        (run / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=rf"^{run}/tokenizer.json: not a tokenizer \("):
            load_tokenizer(run)
