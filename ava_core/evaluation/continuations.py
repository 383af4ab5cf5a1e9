"""`evaluate.continuations`: what a model writes after given texts, beside what stands there."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.config.evaluate import ContinuationsConfig, EvaluateConfig
from ava_core.data.shards import ShardedSplit
from ava_core.errors import ConfigError
from ava_core.evaluation.text_metrics import against_references, among_themselves
from ava_core.files import write_whole
from ava_core.generation.decoding import generate
from ava_core.generation.prompts import encode, encode_text
from ava_core.tasks.likelihood import Scorer

KEY = "evaluate.continuations"


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text to continue.

    Attributes:
        prompt: what is given.
        references: what may follow, at least one.
    """

    prompt: str
    references: list[str]


def open_passages(
    config: ContinuationsConfig, split: ShardedSplit, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[Passage]:
    """The passages of the file that the configuration names, else of the test split; none if `count` is 0.

    Raises:
        ConfigError: the file can't be read, or the split has no passage of that length.
    """
    if not config.count:
        return []
    if config.references is not None:
        return _read(Path(config.references))[: config.count]
    found = _from_split(config, split, tokenizer, seed)
    if not found:
        raise ConfigError(
            f"{KEY}: no document of the test split has {config.prompt_tokens} + {config.new_tokens} tokens: ask for"
            " fewer (prompt_tokens, new_tokens)"
        )
    return found


def _read(path: Path) -> list[Passage]:
    head = f"{KEY}.references: {path}"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{head}: can't be read ({error}): name a file of JSON lines") from error
    passages, faults = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            passage = _passage(line)
            if isinstance(passage, str):
                faults.append(f"{head}: line {number}: {passage}")
            else:
                passages.append(passage)
    if not faults and not passages:
        faults.append(f"{head}: is empty")
    if faults:
        raise ConfigError(*faults[:10])
    return passages


def _passage(line: str) -> Passage | str:
    """What a line says, or what is wrong with it."""
    try:
        values: Any = json.loads(line)
    except ValueError:
        return "isn't JSON"
    if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
        return "needs `prompt`, a text"
    given = values.get("reference")
    references = [given] if isinstance(given, str) else given
    if not isinstance(references, list) or not references or not all(isinstance(item, str) for item in references):
        return "needs `reference`, a text or a list of texts"
    return Passage(prompt=values["prompt"], references=references)


def _from_split(
    config: ContinuationsConfig, split: ShardedSplit, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[Passage]:
    length = config.prompt_tokens + config.new_tokens
    starts = split.document_starts.tolist()
    ends = [*starts[1:], split.num_tokens]
    spots = [spot for start, end in zip(starts, ends, strict=True) for spot in range(start, end - length, length)]
    random.Random(f"{seed} continuations").shuffle(spots)  # noqa: S311  no secret
    passages = []
    for spot in spots:
        tokens = split.tokens[spot : spot + length].astype("int64").tolist()
        parts = [tokens[: config.prompt_tokens], tokens[config.prompt_tokens :]]
        prompt, reference = tokenizer.batch_decode(parts, clean_up_tokenization_spaces=False)
        if "\ufffd" not in prompt + reference and reference.strip():  # cut amid a letter
            passages.append(Passage(prompt=prompt, references=[reference]))
        if len(passages) == config.count:
            break
    return passages


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """What one model wrote.

    Attributes:
        texts: without the prompts.
        figures: by name without prefix.
    """

    texts: list[str]
    figures: dict[str, float]


def measure_continuations(
    passages: Sequence[Passage],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: EvaluateConfig,
    seed: int,
    kept: Path,
) -> Continuations:
    """Let a model continue all passages, and measure what it wrote; taken from `kept` if a killed run left it there."""
    if kept.is_file():
        return Continuations(**json.loads(kept.read_text()))
    chosen = config.continuations
    prompts = [passage.prompt for passage in passages]
    settings = config.generation.model_copy(update={"max_new_tokens": chosen.new_tokens})
    whole = generate(model, tokenizer, prompts, strategy=chosen.strategy, settings=settings, seed=seed)
    texts = [text[len(prompt) :] for text, prompt in zip(whole, prompts, strict=True)]
    scorer = Scorer(model, config.batch_size, model.config.max_position_embeddings)
    figures = {
        **against_references(texts, [passage.references for passage in passages]),
        **among_themselves(texts),
        **_coherence("coherence", prompts, texts, tokenizer, scorer),
        **_coherence(
            "reference_coherence", prompts, [passage.references[0] for passage in passages], tokenizer, scorer
        ),
    }
    result = Continuations(texts=texts, figures=figures)
    write_whole(kept, json.dumps(asdict(result), ensure_ascii=False), durable=True)
    return result


def _coherence(
    name: str, prompts: Sequence[str], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, scorer: Scorer
) -> dict[str, float]:
    """How much the mean log-likelihood of a text, in nats per token, falls when its prompt is another text's.

    A pointwise mutual information of text and prompt, by the model itself; nothing where there is no other prompt.
    """
    contexts = [encode(tokenizer, prompt) for prompt in prompts]
    pairs = [(index, encode_text(tokenizer, text)) for index, text in enumerate(texts)]
    pairs = [(index, tokens) for index, tokens in pairs if tokens]
    if len(prompts) < 2 or not pairs:
        return {}
    own = scorer.score([(contexts[index], tokens) for index, tokens in pairs])
    others = scorer.score([(contexts[(index + 1) % len(contexts)], tokens) for index, tokens in pairs])
    falls = [
        (nats - other) / len(tokens) for (_, tokens), (nats, _), (other, _) in zip(pairs, own, others, strict=True)
    ]
    return {name: sum(falls) / len(falls)}


def write_continuations(output: Path, passages: Sequence[Passage], written: Mapping[str, Continuations | None]) -> None:
    """continuations.jsonl: what each model wrote after each prompt, where that was asked for."""
    rows = [
        {"model": model, "prompt": passage.prompt, "text": text, "references": passage.references}
        for model, continuations in written.items()
        if continuations is not None
        for passage, text in zip(passages, continuations.texts, strict=True)
    ]
    if rows:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output / "continuations.jsonl").write_text(text, encoding="utf-8")
