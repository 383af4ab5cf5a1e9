"""What the model writes while it learns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from ava_core.training.callbacks.base import Callback, Row
from ava_core.training.callbacks.records import JsonLines

if TYPE_CHECKING:
    from ava_core.training.trainer import Trainer

log = logging.getLogger(__name__)
FILE = "samples.jsonl"
NEW_TOKENS = 48
TEMPERATURE, TOP_P = 0.8, 0.9
SEED = 0
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "nucleus": {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0},
}


class Samples(Callback):
    """Continues fixed prompts every `every` steps, greedily and by nucleus sampling, with the weights as they are.

    The texts go to the log and to `samples.jsonl`. The training's random numbers stay as they were.

    Args:
        every: `train.sample_every`.
        state: the training's state folder.
        tokenizer: folder of the tokenizer.
        prompts: what to continue; an empty one begins a document.
    """

    def __init__(self, every: int, state: Path, tokenizer: Path, prompts: Sequence[str] = ("",)) -> None:
        self.every, self.folder, self.prompts = every, tokenizer, prompts
        self.rows = JsonLines(state / FILE)
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def on_start(self, run: Trainer) -> None:
        if run.ranks.is_first:
            self.rows.resume(run.step)

    def after_step(self, run: Trainer, row: Row) -> None:
        step = int(row["step"])
        if step % self.every:
            return
        # Under ZeRO 3 a pass gathers weights from all ranks, so all make it, with the same prompts and noise.
        if not (run.ranks.is_first or run.config.zero_stage == 3):
            return
        rows = [
            {"step": step, "strategy": strategy, "prompt": prompt, "text": self._continue(run.model, prompt, strategy)}
            for prompt in self.prompts
            for strategy in STRATEGIES
        ]
        if run.ranks.is_first:
            self.rows.append(*rows)
            for sample in rows:
                log.info("step %d, %s: %r", step, sample["strategy"], f"{sample['prompt']}{sample['text']}")

    def _continue(self, model: nn.Module, prompt: str, strategy: str) -> str:
        """The continuation alone."""
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        tokenizer = self._tokenizer
        decoder = cast(Any, model)
        # Text is text, as in the training data: a special token that is spelt out is its characters.
        text = tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)
        ids = text["input_ids"] or [tokenizer.eos_token_id]
        room = decoder.config.max_position_embeddings - NEW_TOKENS
        device = next(model.parameters()).device
        ids_BS = torch.tensor([ids[-max(room, 1) :]], device=device)
        config = GenerationConfig(
            max_new_tokens=min(NEW_TOKENS, decoder.config.max_position_embeddings - ids_BS.shape[1]),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            **STRATEGIES[strategy],
        )
        training = model.training
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(SEED)
            model.eval()
            try:
                sequences = decoder.generate(
                    input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), generation_config=config
                )
            finally:
                model.train(training)
        return str(tokenizer.decode(sequences[0, ids_BS.shape[1] :].tolist(), skip_special_tokens=True))
