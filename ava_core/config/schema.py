"""The typed configuration: one pydantic model per section of params.yaml.

Every field has its meaning and unit right under it; `ava config show` prints the resolved values.
Unknown keys are refused. Defaults are a small model for a CPU; presets change them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ava_core.config.kubernetes import KubernetesConfig
from ava_core.config.limits import MAX_THREADS, MAX_TOKENIZER_ENTRIES, MODEL_SIZES
from ava_core.config.quantization import QuantizeConfig
from ava_core.config.routing import RouterName, router_fault
from ava_core.config.section import AnyText, Fraction, NonNegative, Positive, PositiveNumber, Section, Text, Weight
from ava_core.config.training import TrainConfig

SOURCE_KINDS = ("corpus", "path", "hub")
"""Keys that name a source, one of which each entry of `data.sources` has; `ava_core/data/sources/KEY.py` opens it."""


class SourceConfig(Section):
    """One source of documents: exactly one of `corpus`, `path` or `hub`."""

    corpus: Literal["shakespeare"] | None = None
    """An embedded corpus, fetched by `make data` and read from the folder given with --data."""
    path: Text | None = None
    """A file, folder or glob; relative paths count from the folder given with --data, else from the current one."""
    hub: Text | None = None
    """Name of a data set on the Hugging Face Hub, read with `datasets`."""
    format: Literal["text", "markdown", "jsonl", "parquet", "arrow"] = "text"
    """How the files of `path` are read."""
    text_field: Text = "text"
    """Column that holds the text, for jsonl, parquet, arrow and hub."""
    split: Text = "train"
    """Split to read, for hub."""
    revision: Text | None = None
    """Commit or tag to read, for hub; a moving branch makes results unrepeatable."""
    streaming: bool = False
    """Read a hub data set record by record instead of downloading it whole."""

    @model_validator(mode="after")
    def _exactly_one(self) -> SourceConfig:
        given = [name for name in SOURCE_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"names {' and '.join(given) or 'no source'}: give exactly one of {', '.join(SOURCE_KINDS)}"
            )
        return self

    @property
    def kind(self) -> str:
        """Which of `SOURCE_KINDS` is given."""
        return next(name for name in SOURCE_KINDS if getattr(self, name) is not None)

    @property
    def location(self) -> str:
        """What is given under it."""
        return getattr(self, self.kind)


class CleaningConfig(Section):
    """Cleaning filters, in the order in which they run. Each is counted in the cleaning report."""

    normalize_unicode: bool = True
    """NFC, and line ends as a single newline."""
    strip_control_characters: bool = True
    """Remove control characters other than tab and newline."""
    render_markdown: bool = True
    """Turn Markdown sources into plain text: emphasis, heading marks and hard breaks go, words stay."""
    collapse_blank_lines: bool = True
    """At most one blank line in a row; no spaces at line ends."""
    min_characters: NonNegative = 32
    """Documents shorter than this are dropped."""
    min_letter_share: Fraction = 0.5
    """Documents with a smaller share of letters among the non-space characters are dropped."""
    max_line_repetition: Fraction = 0.6
    """Documents with a larger share of repeated non-empty lines are dropped."""


class DeduplicationConfig(Section):
    """Removal of repeated documents."""

    exact: bool = True
    """Drop documents whose cleaned text is byte-identical to an earlier one."""
    near: bool = True
    """Drop documents whose MinHash estimate of Jaccard similarity to an earlier one passes `threshold`."""
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Jaccard similarity of word shingles from which two documents count as near duplicates."""
    num_permutations: Annotated[int, Field(ge=2, le=65_536)] = 128
    """Hash functions of a MinHash signature."""
    shingle_words: Annotated[int, Field(gt=0, le=10_000)] = 5
    """Words in one shingle."""


class SplitConfig(Section):
    """Division into train, validation and test."""

    by: Literal["document", "position"] = "document"
    """`document`: by salted hash of the content; `position`: contiguous parts of one long text."""
    train: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.90
    """Share of bytes for training."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of bytes for validation; what remains is the test split."""
    salt: str = "ava"
    """Mixed into the hash: another salt, another split."""

    @model_validator(mode="after")
    def _leaves_a_test_split(self) -> SplitConfig:
        if self.train + self.validation >= 1.0:
            raise ValueError(
                f"train = {self.train:g}: train + validation must be < 1, to leave bytes for the test split"
            )
        return self


class DataConfig(Section):
    """From sources to shards."""

    sources: Annotated[list[SourceConfig], Field(min_length=1)] = [SourceConfig(corpus="shakespeare")]
    """Where the documents come from, in order."""
    document_separator: AnyText | None = None
    """Splits a text file into documents at this string; null: a file is one document."""
    cleaning: CleaningConfig = CleaningConfig()
    deduplication: DeduplicationConfig = DeduplicationConfig()
    split: SplitConfig = SplitConfig()
    shard_tokens: Positive = 4_194_304
    """Tokens in one shard file, at most."""


class TokenizerConfig(Section):
    """Byte-level BPE, trained on the training split only."""

    vocab_size: Annotated[int, Field(ge=260, le=MAX_TOKENIZER_ENTRIES)] = 2048
    """Entries including the 256 bytes and the special tokens."""
    min_frequency: Positive = 2
    """Pairs seen less often are not merged."""


class ModelConfig(Section):
    """The architecture; the fields are those of `EnhancedMoEConfig`."""

    hidden_size: Annotated[int, Field(gt=0, le=MODEL_SIZES["hidden_size"])] = 256
    """Width D of the residual stream."""
    num_layers: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_layers"])] = 4
    """Transformer blocks."""
    num_attention_heads: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_attention_heads"])] = 4
    """Query heads."""
    num_key_value_heads: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_key_value_heads"])] = 2
    """Key/value heads; fewer than query heads is grouped-query attention."""
    head_dim: Annotated[int, Field(gt=0, le=MODEL_SIZES["head_dim"])] | None = None
    """Width of one head; null: hidden_size / num_attention_heads."""
    max_position_embeddings: Annotated[int, Field(gt=0, le=MODEL_SIZES["max_position_embeddings"])] = 512
    """Longest sequence in tokens that the model accepts."""
    rope_theta: Annotated[float, Field(gt=0, le=MODEL_SIZES["rope_theta"])] = 10_000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: Annotated[float, Field(gt=0, le=MODEL_SIZES["rms_norm_eps"])] = 1e-6
    qk_norm: Literal["head", "projection", "none"] = "head"
    """RMSNorm on queries and keys: of each head, of the whole projection, or none."""
    tie_word_embeddings: bool = True
    """Output head shares the embedding matrix."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the residual branches."""
    initializer_range: Annotated[float, Field(gt=0, le=MODEL_SIZES["initializer_range"])] = 0.02
    """Standard deviation of the initial weights."""
    num_ffn_experts: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_ffn_experts"])] = 8
    """SwiGLU experts per layer."""
    expert_intermediate_size: Annotated[int, Field(gt=0, le=MODEL_SIZES["expert_intermediate_size"])] = 256
    """Inner width of one SwiGLU expert."""
    num_zero_experts: Annotated[int, Field(ge=0, le=MODEL_SIZES["num_zero_experts"])] = 1
    """Experts E(x) = 0 (MoE++, arXiv 2410.07348)."""
    num_copy_experts: Annotated[int, Field(ge=0, le=MODEL_SIZES["num_copy_experts"])] = 1
    """Experts E(x) = x."""
    num_constant_experts: Annotated[int, Field(ge=0, le=MODEL_SIZES["num_constant_experts"])] = 2
    """Experts E(x) = a1 x + a2 v."""
    num_shared_experts: Annotated[int, Field(ge=0, le=MODEL_SIZES["num_shared_experts"])] = 0
    """SwiGLU experts that every token passes."""
    router: RouterName = "top_k"
    """How experts are chosen. top_k: a fixed number; confidence: until the cumulative probability passes a threshold;
    sinkhorn: a balanced assignment while training; hierarchical: groups first, then experts inside; expert_bias: a bias
    that follows the load; expert_choice: experts choose tokens while training."""
    num_experts_per_token: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_experts_per_token"])] = 2
    """k of every router but confidence; of expert_choice, on average."""
    confidence_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    """p of the confidence router."""
    max_experts_per_token: Annotated[int, Field(gt=0, le=MODEL_SIZES["max_experts_per_token"])] = 4
    """Upper bound on the experts that the confidence router gives a token."""
    num_expert_groups: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_expert_groups"])] = 1
    """Groups of the hierarchical router, of equal size over all experts in their order; 1 is plain top_k."""
    num_groups_per_token: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_groups_per_token"])] = 1
    """Groups of the hierarchical router that one token's experts may come from."""
    sinkhorn_iterations: Annotated[int, Field(gt=0, le=MODEL_SIZES["sinkhorn_iterations"])] = 8
    """Normalisations of columns and rows by the sinkhorn router."""
    expert_bias_update_rate: Annotated[float, Field(ge=0.0, le=MODEL_SIZES["expert_bias_update_rate"])] = 0.001
    """Change of the expert_bias router's bias per optimiser step."""
    normalize_router_weights: bool = False
    """Renormalise the weights of the chosen experts to sum to 1."""
    gating_residuals: bool = True
    """Add the previous layer's router logits through a learned map (MoE++, eq. 6)."""
    tau: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    """Weight of a zero-computation expert in the balance loss, and share of capacity (MoE++, eq. 7 and 8)."""
    capacity_factor: Annotated[float, Field(gt=0.0, le=MODEL_SIZES["capacity_factor"])] | None = None
    """gamma: tokens past an expert's capacity are dropped; null: nothing is dropped. For expert_choice: how many tokens
    the experts choose; 1 or null: as many as give k experts per token on average."""
    balance_loss_weight: Annotated[float, Field(ge=0.0, le=MODEL_SIZES["balance_loss_weight"])] = 0.01
    """Weight of the heterogeneous load balance loss."""
    router_z_loss_weight: Annotated[float, Field(ge=0.0, le=MODEL_SIZES["router_z_loss_weight"])] = 0.001
    """Weight of the router z-loss."""
    router_diversity_weight: Annotated[float, Field(ge=0.0, le=MODEL_SIZES["router_diversity_weight"])] = 0.0
    """Weight of the loss that keeps experts from seeing the same tokens (mutual information, arXiv 2306.04640)."""
    router_jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Multiplicative noise on the router's input in training, uniform in 1 +- jitter."""
    experts_implementation: Literal["auto", "grouped_mm", "looped", "native", "dense"] = "auto"
    """How experts are evaluated; auto: by device. native: Ava's own kernels for CPUs; dense: the slow reference."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelConfig:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size}: must be a multiple of num_attention_heads"
                f" = {self.num_attention_heads}, or head_dim be given"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads}: must be a multiple of num_key_value_heads"
                f" = {self.num_key_value_heads}"
            )
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if head_dim % 2:
            raise ValueError(f"head_dim = {head_dim}: must be even, for rotary embeddings rotate pairs")
        return self

    @model_validator(mode="after")
    def _router_fits(self) -> ModelConfig:
        if fault := router_fault(self):
            field, requirement = fault
            raise ValueError(f"{field} = {getattr(self, field)}: {requirement}")
        return self

    @property
    def num_experts(self) -> int:
        """Experts that the router chooses from: FFN, zero, copy and constant."""
        return self.num_ffn_experts + self.num_zero_experts + self.num_copy_experts + self.num_constant_experts


class GenerationConfig(Section):
    """How the samples of the report, and `ava generate` by default, are decoded."""

    max_new_tokens: Positive = 64
    num_beams: Annotated[int, Field(ge=2, le=4096)] = 4
    """Width of beam search."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.8
    """Of sampling: divides the logits."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Probability mass of nucleus sampling."""
    top_k: NonNegative = 0
    """Most probable tokens to sample from, for top-k, and for nucleus beside top_p; 0: all (top-k: 50)."""
    min_p: Fraction = 0.0
    """Least probability of a token to sample, relative to the most probable one, for min-p, and for nucleus beside
    top_p; 0: any (min-p: 0.05)."""
    stop: list[AnyText] = []
    """Strings that end a text, which leaves them out."""
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Divides the logits of tokens that occurred; 1: off."""


class EvaluateConfig(Section):
    """Measurements on the test split, and the report."""

    batch_size: Positive = 16
    """Windows scored at once."""
    prompts: Annotated[list[AnyText], Field(min_length=1)] = ["To be, or", "ROMEO\nO, she doth", "Enter the KING"]
    """What the samples continue."""
    generation: GenerationConfig = GenerationConfig()


class GateConfig(Section):
    """Bounds that a version must keep to become champion."""

    max_bits_per_byte: PositiveNumber = 2.3
    """Absolute bound on test_bits_per_byte, used while there is no champion."""
    tolerance_bits_per_byte: Weight = 0.01
    """How much worse than the present champion a version may be."""
    max_quantized_increase: Weight = 0.02
    """How many bits per byte a quantised model may lose against its float model."""


class RegisterConfig(Section):
    """The model registry."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = "ava-moe"
    """Name of the registered model."""
    experiment: Text = "ava"
    """MLflow experiment of the run."""
    gate: GateConfig = GateConfig()


class AvaConfig(Section):
    """The whole configuration, as `ava config show` prints it."""

    preset: str | None = None
    """Name of a file under configs/ without its ending, or `auto`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1337
    """Seeds everything that is random."""
    threads: Annotated[int, Field(ge=0, le=MAX_THREADS)] = 0
    """CPU threads of every step; 0: as many as this process may use. Only the same number gives the same bits."""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    registry: Annotated[RegisterConfig, Field(alias="register")] = RegisterConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()

    @model_validator(mode="after")
    def _context_fits(self) -> AvaConfig:
        if self.train.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"train.sequence_length = {self.train.sequence_length}: must be <= model.max_position_embeddings"
                f" = {self.model.max_position_embeddings}"
            )
        return self

    @model_validator(mode="after")
    def _regularization_can_grow(self) -> AvaConfig:
        for name in ("dropout", "router_jitter") if self.train.regularization.adaptive else ():
            maximum, base = getattr(self.train.regularization, f"max_{name}"), getattr(self.model, name)
            if maximum < base:
                raise ValueError(
                    f"train.regularization.max_{name} = {maximum}: must be >= model.{name} = {base}, which it starts"
                    " from"
                )
        return self
