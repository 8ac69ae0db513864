"""Every option of a model and of its training, with its default, its meaning and its checks: all that a run is.

A field is an option of the command line too: `option` says in `help` what it is and in which unit. Whatever a field
can be wrong by raises a ValueError here, of one line that names the option and the mend; nothing behind this module
asks again.
"""

from dataclasses import dataclass, field
from typing import Any

from microumup import limits
from microumup.fp8 import parse_recipe
from microumup.limits import option_name
from microumup.parametrization import SCHEMES, Scheme, without_embedding_lr_rule

DECAYS = ("independent", "fully-independent", "coupled")  # readings of weight decay; `optim.py` has their formulas


def option(default: object, help: str, *, common: bool = False) -> Any:
    """A field that is also a command-line option; those that are not `common` are explained by `--help-all` alone."""
    return field(default=default, metadata={"help": help, "common": common})


@dataclass(frozen=True)
class ModelConfig:
    """The network. Everything that fixes it; raises ValueError, naming the option, for what no network can have."""

    scheme: str = option("umup", f"parametrization, a row of Tables 1-3: {', '.join(SCHEMES)}", common=True)
    width: int = option(64, "D, size of the residual stream; a multiple of the head dim", common=True)
    layers: int = option(2, "layers, of attention and FFN branch each", common=True)
    head_dim: int = option(16, "K, size of an attention head; even")
    seq_len: int = option(64, "s, tokens in a training sequence; fixed with the model: attention's factor needs it")
    vocab_size: int = option(256, "V; 256 is raw bytes, more trains a byte-level BPE tokenizer of that size")
    alpha_res: float = option(1.0, "u-µP: std of all branches' sum over the embedding's, at init (eq. 24)")
    alpha_res_attn_ratio: float = option(1.0, "u-µP: std of the attention branches over the FFN branches' (eq. 23)")
    alpha_ffn_act: float = option(1.0, "u-µP: multiplier in gated_silu's sigmoid (eq. 26)")
    alpha_attn_softmax: float = option(1.0, "multiplier before attention's softmax (eq. 25)")
    alpha_loss_softmax: float = option(1.0, "multiplier of the logits in the loss (eq. 27)")
    embedding_lr_rule: bool = option(True, "u-µP: scale the embedding's learning rate by 1/√width (App. A.3)")
    eta_emb: float = option(1.0, "η̂_emb, factor of the embedding's learning rate")
    sigma_init: float = option(1.0, "µP: factor of every initial std")
    alpha_emb: float = option(1.0, "µP: multiplier of the embedding's output")
    base_width: int = option(256, "µP: the width at which µP is the standard parametrization")
    base_layers: int = option(4, "µP: the number of layers at which it is")
    fp8: str = option("none", "casts in linears: none, fp8, fp8-iclr; then ,SITE.TENSOR=FORMAT overrides", common=True)
    norm_eps: float = option(1e-6, "ε of RMSNorm")
    rope_base: float = option(10_000.0, "base of RoPE's frequencies")

    def __post_init__(self) -> None:
        limits.check_fields(self)
        if self.scheme not in SCHEMES:
            raise ValueError(f"--scheme: {self.scheme!r} is unknown; choose from {', '.join(SCHEMES)}")
        if self.head_dim % 2:
            raise ValueError(f"--head-dim: {self.head_dim} is odd; RoPE turns pairs of elements, use an even number")
        if self.width % self.head_dim:
            raise ValueError(f"--width: {self.width} is not a multiple of --head-dim {self.head_dim}")
        for name in ("width", "base_width"):
            if getattr(self, name) % 4:
                raise ValueError(f"{option_name(name)}: {getattr(self, name)} is no multiple of 4; the FFN is 11/4 D")
        known = SCHEMES[self.scheme].hyperparameters
        for name in sorted({hp for scheme in SCHEMES.values() for hp in scheme.hyperparameters} - set(known)):
            if getattr(self, name) != getattr(ModelConfig, name):
                has = ", ".join(map(option_name, known)) or "none but --lr and --eta-emb"
                raise ValueError(f"{option_name(name)}: not a hyperparameter of --scheme {self.scheme}; it has {has}")
        parse_recipe(self.fp8)

    @property
    def ffn_dim(self) -> int:
        return 11 * self.width // 4

    @property
    def branches(self) -> int:
        return 2 * self.layers

    @property
    def rules(self) -> Scheme:
        scheme = SCHEMES[self.scheme]
        return scheme if self.embedding_lr_rule else without_embedding_lr_rule(scheme)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},  # the defaults below
    "laptop": {"width": 128, "layers": 4, "head_dim": 32, "seq_len": 128, "batch_size": 16, "steps": 2000},
    "paper": {  # Table 6
        "width": 256, "layers": 4, "head_dim": 64, "seq_len": 256, "batch_size": 64, "steps": 8192,
        "corpus": "wikitext-103", "vocab_size": 32_000,
    },
}  # fmt: skip

TYPICAL_LR = ", ".join(f"{row.typical_lr:.3g} for {name}" for name, row in SCHEMES.items())


@dataclass(frozen=True)
class TrainConfig(ModelConfig):
    """The training. A model and how it is trained; raises ValueError, naming the option, for what cannot be."""

    corpus: str = option("sotu", "sotu (State of the Union, shipped) or wikitext-103 (made by microumup data prepare)")
    text: tuple[str, ...] = option((), "train on your own UTF-8 text files instead of a corpus", common=True)
    valid: tuple[str, ...] = option((), "held-out UTF-8 text files, validated on whole; else parts of the text (5 %)")
    batch_size: int = option(16, "B, sequences in a batch", common=True)
    micro_batch: int = option(0, "sequences at a time, where memory is short; same gradients up to rounding; 0: all")
    steps: int = option(1000, "updates", common=True)
    lr: float | None = option(None, f"η, the peak learning rate: 1.5, or 2^-7 (default: {TYPICAL_LR})", common=True)
    warmup: float = option(2000 / 8192, "share of the steps in which the learning rate rises; then a cosine to 10 %")
    weight_decay: float = option(2**-13, "λ, share of a weight that a step at the peak takes away, whatever η; 2^-13")
    decay: str = option("independent", "factor of λ: independent s(t), fully-independent 1, coupled s(t) η C")
    optimizer: str = option("adamw", "adamw, or sgd (divides each gradient by its known constant; name an --lr)")
    beta1: float = option(0.9, "β1 of AdamW, of the mean of gradients")
    beta2: float = option(0.999, "β2 of AdamW, of the mean of their squares")
    adam_eps: float = option(1e-8, "ε of AdamW; it meets gradients as they are, of a scale that the scheme decides")
    clip: float | None = option(None, "largest norm of the gradient by all effective weights A·w; more is scaled down")
    loss_scale: float = option(1.0, "factor of the mean loss that is differentiated; batch size x seq len: its sum")
    seed: int = option(0, "of the initial weights and the batches", common=True)
    kernels: str = option("fast", "fast: the pairs of ops made for the device; plain: those one reads, ops.py alone")
    tf32: bool = option(False, "on a GPU: matrix products in TF32, faster, with 10 bits of mantissa instead of 23")
    threads: int = option(1, "that share a batch, equal ones give equal bits; the command train takes one per core")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads > self.batch_size:
            raise ValueError(f"--threads: {self.threads} is more than --batch-size {self.batch_size}; take fewer")
        for name, known in (("optimizer", ("adamw", "sgd")), ("decay", DECAYS), ("kernels", ("fast", "plain"))):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name}: {getattr(self, name)!r} is unknown; choose from {', '.join(known)}")
        if self.lr is None and self.optimizer == "sgd":
            raise ValueError("--lr: name one for --optimizer sgd; the schemes' defaults are AdamW's")
        if self.lr is None:
            object.__setattr__(self, "lr", SCHEMES[self.scheme].typical_lr)

    @property
    def eta(self) -> float:
        """η, with the scheme's default put in."""
        assert self.lr is not None
        return self.lr
