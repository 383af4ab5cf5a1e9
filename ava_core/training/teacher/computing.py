"""Computing a teacher's predictions on a token stream, part by part. Shapes: see `ava_core.models.shapes`.

Windows of the training context overlap by half, and each gives the predictions of its second half, so that every
position but the first ones has at least half a context before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ava_core.data.shards import ShardedSplit
from ava_core.files import write_whole
from ava_core.losses import TeacherTargets
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.runtime.digests import digest_file
from ava_core.training.pretraining import packed_document_ids
from ava_core.training.teacher.predictions import Predictions, tensors_of

BATCH_TOKENS = 4096
"""Inputs read at once."""
LOGITS_ROWS = 1024
"""Positions whose logits over the vocabulary exist at once."""


@dataclass(frozen=True)
class Reading:
    """How a teacher reads a stream.

    Attributes:
        model: the teacher, in evaluation mode, on its device.
        split: the stream, with the end of its documents.
        context: S, tokens of a window.
        temperature: divides the teacher's logits.
    """

    model: EnhancedMoEForCausalLM
    split: ShardedSplit
    context: int
    temperature: float

    def write(self, predictions: Predictions, part: int, advance: Callable[[int], None]) -> None:
        """Compute a part and write it; `advance` is told how many positions are done."""
        begin, end = predictions.span(part)
        ids, log_probs = [], []
        for done, targets in self._targets(begin, end, predictions.top_k):
            ids.append(targets.ids_TK.cpu())
            log_probs.append(targets.log_probs_TK1.cpu())
            advance(done)
        tensors = tensors_of(torch.cat(ids), torch.cat(log_probs), self.split.vocab_size)
        write_whole(predictions.path(part), save(dict(tensors)))
        write_whole(predictions.digest_path(part), digest_file(predictions.path(part)) + "\n")

    @torch.no_grad()
    def _targets(self, begin: int, end: int, top_k: int) -> Iterator[tuple[int, TeacherTargets]]:
        """Of positions `begin` to `end`, in order, and how many have been given with each."""
        tokens, S = self.split.tokens, self.context
        step, rows = max(1, S // 2), max(1, BATCH_TOKENS // S)
        firsts = np.arange(begin, end, step)
        device = next(self.model.parameters()).device
        for batch in range(0, len(firsts), rows):
            first = firsts[batch : batch + rows]
            # Position p is row p - start of its window; the stream's beginning has nothing before it.
            start = np.maximum(first + step - S, 0)
            index = np.minimum(start[:, None] + np.arange(S), len(tokens) - 1)
            inputs = tokens[index].astype(np.int64)
            ids = packed_document_ids(inputs, self.split.boundary_token_id)
            hidden_BSD = self.model.model(
                input_ids=torch.from_numpy(inputs).to(device),
                document_ids=None if ids is None else ids.to(device),
                use_cache=False,
            ).last_hidden_state
            wanted = [
                hidden_BSD[row, first[row] - start[row] : min(first[row] + step, end) - start[row]]
                for row in range(len(first))
            ]
            hidden_TD = torch.cat(wanted)
            done = int(min(first[-1] + step, end)) - begin
            for piece in hidden_TD.split(LOGITS_ROWS):
                yield done, self._top(piece, top_k)

    def _top(self, hidden_TD: Tensor, top_k: int) -> TeacherTargets:
        """The distribution over the K most probable entries of the tokenizer and the rest."""
        logits_TV = self.model.lm_head(hidden_TD)[:, : self.split.vocab_size].float() / self.temperature
        log_sum_T1 = logits_TV.logsumexp(dim=-1, keepdim=True)
        top_TK, ids_TK = logits_TV.topk(top_k, dim=-1)
        rest_T1 = logits_TV.scatter(1, ids_TK, -torch.inf).logsumexp(dim=-1, keepdim=True)
        return TeacherTargets(ids_TK=ids_TK, log_probs_TK1=torch.cat((top_TK, rest_T1), dim=-1) - log_sum_T1)
