"""What the model writes while it learns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ava_core.config.generation import GenerationConfig
from ava_core.data.tokenizer import load_tokenizer
from ava_core.generation.decoding import generate
from ava_core.training.callbacks.base import Callback, Row, Run
from ava_core.training.callbacks.records import JsonLines

log = logging.getLogger(__name__)
FILE = "samples.jsonl"
NEW_TOKENS = 48
SETTINGS = GenerationConfig(temperature=0.8, top_p=0.9)
SEED = 0
STRATEGIES = ("greedy", "nucleus")


class Samples(Callback):
    """Continues fixed prompts every `every` steps, greedily and by nucleus sampling, with the weights as they are.

    The texts go to the log and to `samples.jsonl`. The training's random numbers stay as they were.

    Args:
        every: `train.sample_every`.
        state: the training's state folder.
        tokenizer: folder of the tokenizer.
        prompts: what to continue; an empty one begins a document. They must leave room for NEW_TOKENS in the context.
    """

    def __init__(self, every: int, state: Path, tokenizer: Path, prompts: Sequence[str] = ("",)) -> None:
        self.every, self.folder, self.prompts = every, tokenizer, list(prompts)
        self.rows = JsonLines(state / FILE)
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def on_start(self, run: Run) -> None:
        if run.ranks.is_first:
            self.rows.resume(run.step)

    def after_step(self, run: Run, row: Row) -> None:
        step = int(row["step"])
        if step % self.every:
            return
        # Under ZeRO 3 a pass gathers weights from all ranks, so all make it, with the same prompts and noise.
        if not (run.ranks.is_first or run.config.zero_stage == 3):
            return
        texts = {strategy: self._continue(run.model, strategy) for strategy in STRATEGIES}
        rows = [
            {"step": step, "strategy": strategy, "prompt": prompt, "text": texts[strategy][index]}
            for index, prompt in enumerate(self.prompts)
            for strategy in STRATEGIES
        ]
        if run.ranks.is_first:
            self.rows.append(*rows)
            for sample in rows:
                log.info("step %d, %s: %r", step, sample["strategy"], f"{sample['prompt']}{sample['text']}")

    def _continue(self, model: Any, strategy: str) -> list[str]:
        """The prompts' continuations alone."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.folder)
        context = model.config.max_position_embeddings
        settings = SETTINGS.model_copy(update={"max_new_tokens": min(NEW_TOKENS, context - 1)})
        training = model.training
        model.eval()
        try:
            texts = generate(model, self._tokenizer, self.prompts, strategy=strategy, settings=settings, seed=SEED)
        finally:
            model.train(training)
        return [text.removeprefix(prompt) for text, prompt in zip(texts, self.prompts, strict=True)]
