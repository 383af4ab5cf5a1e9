"""A request in the engine: what it has said so far, and how it chooses its next token."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ava_core.errors import AvaError
from ava_core.generation.sampling import Sampler
from ava_core.generation.text_stream import TextStream
from ava_core.serving.requests import Delta, Failed, Request, TokenLogprobs


class Sequence:
    """One request's state. Made by `Engine.submit`; the engine's thread alone changes it, but for `cancel`.

    Attributes:
        last_token: the newest token, which the decoder hasn't seen yet.
        cancelled: nobody wants the rest.
        owner: whatever the one who submitted it wants to find it by.
    """

    def __init__(
        self, request: Request, tokenizer: PreTrainedTokenizerBase, context: int, owner: object = None
    ) -> None:
        self.request = request
        self.cancelled = False
        self.owner = owner
        self.last_token = -1
        self._sampler = Sampler(request.strategy, request.settings, request.seed, request.prompt_ids)
        self._text = TextStream(tokenizer, request.settings.stop)
        self._end = None if request.ignore_end else tokenizer.eos_token_id
        self._count, self._limit = 0, min(request.settings.max_new_tokens, context - len(request.prompt_ids))

    def cancel(self) -> None:
        """Give up; its row is free before the next token."""
        self.cancelled = True

    def choose(self, logits_V: np.ndarray, best: int) -> Delta | AvaError:
        """Choose a token from the model's logits, of which `best` is the maximum, and say what it adds."""
        if not np.isfinite(logits_V[best]):
            return Failed("the model gave no numbers: another model must be served")
        logits = torch.from_numpy(logits_V)
        token = best if self._sampler.greedy else self._sampler.next(logits)
        self.last_token = token
        self._count += 1
        logprobs = self._logprobs(logits, token)
        if token == self._end:
            text, reason = self._text.flush(), "stop"
        else:
            text, reason = self._text.push(token), None
            if self._count == self._limit and not self._text.stopped:
                text, reason = text + self._text.flush(), "length"
            if self._text.stopped:
                reason = "stop"
        return Delta(text=text, tokens=self._count, finish_reason=reason, logprobs=logprobs)

    def _logprobs(self, logits_V: torch.Tensor, token: int) -> tuple[TokenLogprobs, ...]:
        """Of the model's own distribution, before temperature and filters."""
        if self.request.logprobs is None:
            return ()
        values_V = logits_V.log_softmax(-1)
        top = values_V.topk(min(self.request.logprobs, len(values_V)))
        return (
            TokenLogprobs(
                token=token,
                logprob=float(values_V[token]),
                top=dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
            ),
        )
