"""A request in the engine: its text so far, and the sampling of its next token."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ava_core.errors import AvaError
from ava_core.generation.sampling import Sampler
from ava_core.generation.text_stream import TextStream
from ava_core.serving.logprobs import Logprobs
from ava_core.serving.requests import Delta, Failed, Request

NO_NUMBERS = "the model gave no numbers: another model must be served"


class Sequence:
    """One request's state. Made by `Engine.submit`; the engine's thread alone changes it, but for `cancel`.

    Attributes:
        last_token: the newest token, which the decoder hasn't seen yet.
        cancelled: the client doesn't wait for the rest.
        owner: the submitter's, to find where its deltas go.
        scores_prompt: `score_prompt` wants the logits of the prompt's tokens.
    """

    def __init__(
        self, request: Request, tokenizer: PreTrainedTokenizerBase, context: int, owner: object = None
    ) -> None:
        self.request = request
        self.cancelled = False
        self.owner = owner
        self.last_token = -1
        self.scores_prompt = request.echo and request.logprobs is not None
        self._text = TextStream(tokenizer, request.settings.stop)
        self._ends = () if request.ignore_end else (tokenizer.eos_token_id, *request.ends)
        self._sampler = Sampler(
            request.strategy,
            request.settings,
            request.seed,
            request.prompt_ids,
            ends=self._ends,
            guide=request.guide.fork() if request.guide is not None else None,
        )
        self._count, self._limit = 0, min(request.max_new_tokens, context - len(request.prompt_ids))
        self._echo = self._text.echo(request.prompt_ids) if request.echo else ""
        self._shown = 0
        self._logprobs = Logprobs(tokenizer) if request.logprobs is not None else None

    def cancel(self) -> None:
        """Cancel it; its row is free before the next token."""
        self.cancelled = True

    def score_prompt(self, start: int, logits_SV: np.ndarray) -> None:
        """Take the logits of the prompt's tokens from `start` on: each is scored by those of the token before it.

        Raises:
            Failed: they aren't finite.
        """
        if not np.isfinite(logits_SV).all():
            raise Failed(NO_NUMBERS)
        if start == 0 and self._logprobs is not None:
            self._logprobs.add(self.request.prompt_ids[0], None, {})  # nothing comes before it
        tokens = self.request.prompt_ids[start + 1 : start + 1 + len(logits_SV)]
        self._note(torch.from_numpy(logits_SV[: len(tokens)]), tokens)

    def end_prompt(self) -> Delta:
        """The delta of a request for no new tokens: the prompt's text and log-probabilities."""
        return self._delta(self._text.flush(), "length")

    def choose(self, logits_V: np.ndarray, best: int) -> Delta | AvaError:
        """Choose a token from the model's logits, whose argmax is `best`; returns its delta."""
        if not np.isfinite(logits_V[best]):
            return Failed(NO_NUMBERS)
        logits = torch.from_numpy(logits_V)
        token = best if self._sampler.greedy else self._sampler.next(logits)
        self.last_token = token
        self._count += 1
        self._note(logits[None], [token])
        if token in self._ends:
            text, reason = self._text.flush(), "stop"
        else:
            text, reason = self._text.push(token), None
            if self._sampler.complete:
                text, reason = text + self._text.flush(), "stop"
            elif self._count == self._limit and not self._text.stopped:
                text, reason = text + self._text.flush(), "length"
            if self._text.stopped:
                reason = "stop"
        return self._delta(text, reason)

    def _delta(self, text: str, reason: str | None) -> Delta:
        text, self._echo = self._echo + text, ""
        self._shown += len(text)
        logprobs = () if self._logprobs is None else self._logprobs.release(self._shown, cut=self._text.stopped)
        return Delta(text=text, tokens=self._count, finish_reason=reason, logprobs=logprobs)

    def _note(self, logits_SV: torch.Tensor, tokens: Iterable[int]) -> None:
        """Note the tokens' log-probabilities by the model's own distribution, before temperature and filters."""
        if self._logprobs is None:
            return
        values_SV = logits_SV.log_softmax(-1)
        top = values_SV.topk(min(self.request.logprobs or 0, values_SV.shape[-1]))
        for token, values_V, ids, best in zip(
            tokens, values_SV, top.indices.tolist(), top.values.tolist(), strict=True
        ):
            self._logprobs.add(token, float(values_V[token]), dict(zip(ids, best, strict=True)))
