"""Our models as lm-eval's `LM`: the same tokens and the same figures as `lm_eval --model hf`, computed as we decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.errors import AvaError
from ava_core.progress import Progress
from ava_core.tasks.likelihood import Request, Scorer

SEED = 1234
"""Of sampling in tasks that ask for it, as lm-eval's own default."""
NEW_TOKENS = 256
"""Tokens that a task generates unless it says otherwise, as with `lm_eval --model hf`."""


class BenchmarkedModel(TemplateLM):
    """A model and its tokenizer as lm-eval sees them.

    Args:
        model: as `load_model` gives it, or one in training, in evaluation mode.
        tokenizer: of the same folder.
        rows: contexts at once.
        progress: shows how many requests are done.

    Attributes:
        label: what the progress calls the requests.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int, progress: Progress | None = None
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.rows, self.progress = rows, progress or Progress(quiet=True)
        self.label = "requests"
        self.max_length = int(model.config.max_position_embeddings)
        self.scorer = Scorer(model, rows, self.max_length)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Part of the name of lm-eval's request caches, which aren't used."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, as `lm_eval --model hf` makes them."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, verbose=False, **given)  # too long ones lose their beginning

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each text, in windows of the model's context that don't overlap."""
        windows = [
            (index, make_disjoint_window(pair))
            for index, request in enumerate(requests)
            for pair in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
        ]
        totals = [0.0] * len(requests)
        for (index, _), (nats, _) in zip(windows, self._score([pair for _, pair in windows]), strict=True):
            totals[index] += nats
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for (_, continuation), _, tokens in requests:
            if not 0 < len(tokens) <= self.max_length:
                raise AvaError(
                    f"a task's continuation {continuation[:32]!r}: {len(tokens)} tokens: must be 1 to"
                    f" {self.max_length}, the model's context"
                )
        return self._score([(context, tokens) for _, context, tokens in requests])

    def _score(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        with self._shown(len(requests)) as advance:
            return self.scorer.score(requests, advance)

    @contextmanager
    def _shown(self, total: int) -> Iterator[Callable[[int], None]]:
        """Within it, requests that are done are shown; the value is told how many more there are."""
        done = 0
        with self.progress.task(self.label, total) as show:

            def advance(more: int) -> None:
                nonlocal done
                done += more
                show(done)

            yield advance

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model writes after each context, up to a stop sequence."""
        results = [""] * len(requests)
        by_settings: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_settings.setdefault(repr(request.args[1]), []).append(index)
        tokens = [self.tok_encode(request.args[0]) for request in requests]
        with self._shown(len(requests)) as advance:
            for indices in by_settings.values():
                indices.sort(key=lambda index: (-len(tokens[index]), index))
                for start in range(0, len(indices), self.rows):
                    batch = indices[start : start + self.rows]
                    texts = self._generate([tokens[index] for index in batch], requests[batch[0]].args[1])
                    for index, text in zip(batch, texts, strict=True):
                        results[index] = text
                    advance(len(batch))
        return results

    def _generate(self, contexts: Sequence[list[int]], settings: dict[str, Any]) -> list[str]:
        kwargs = dict(normalize_gen_kwargs(settings, NEW_TOKENS))
        stop = handle_stop_sequences(kwargs.pop("until", None), self.tokenizer.decode(self.eot_token_id))
        new_tokens = kwargs.pop("max_gen_toks")
        room = self.max_length - new_tokens
        if room < 1:
            raise AvaError(
                f"a task generates up to {new_tokens} tokens: the model's context is {self.max_length}: set"
                " generation_kwargs.max_gen_toks of the task to less"
            )
        if kwargs.get("do_sample") is False:
            kwargs.pop("temperature", None)
        kwargs.pop("max_length", None)
        cut = [context[-room:] or [self.prefix_token_id] for context in contexts]
        batch = self.tokenizer.pad({"input_ids": cut}, padding_side="left", return_tensors="pt").to(self.model.device)
        length = batch["input_ids"].shape[1]
        criteria = stop_sequences_criteria(self.tokenizer, stop, length, len(contexts))
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(SEED)
            sequences = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_length=length + new_tokens,
                stopping_criteria=criteria,
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                **kwargs,
            )
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in sequences[:, length:].tolist()]
        return [postprocess_generated_text(text, stop, None) for text in texts]
