"""Searches as their papers have them, in plain loops over whole sequences: no cache, no batch, no padding."""

import torch
from torch.nn.functional import cosine_similarity


def read(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)


def contrastive(model, ids, *, alpha, k, new, end):
    """Equation 5 of arXiv 2202.06417."""
    ids = list(ids)
    for _ in range(new):
        output = read(model, ids)
        probability, context = output.logits[0, -1].softmax(-1), output.hidden_states[-1][0]
        scored = []
        for token in probability.topk(k).indices.tolist():
            state = read(model, [*ids, token]).hidden_states[-1][0, -1]
            worst = max(float(cosine_similarity(state, earlier, dim=0)) for earlier in context)
            scored.append(((1 - alpha) * float(probability[token]) - alpha * worst, token))
        ids.append(max(scored)[1])
        if ids[-1] == end:
            break
    return ids


def diverse_beams(model, prompt, *, beams, groups, penalty, length_penalty, new, end):
    """Algorithm 1 of arXiv 1610.02424 with Hamming diversity; each group's ended texts, the best first."""
    size = beams // groups
    live = [[(0.0, list(prompt))] for _ in range(groups)]
    ended = [[] for _ in range(groups)]
    closed = [False] * groups
    for step in range(1, new + 1):
        chosen = []
        for group in range(groups):
            if closed[group]:
                continue
            found = []
            for score, ids in live[group]:
                values = read(model, ids).logits[0, -1].log_softmax(-1)
                for token, value in enumerate(values.tolist()):
                    found.append((score + value - penalty * chosen.count(token), [*ids, token]))
            found = sorted(found, key=lambda text: -text[0])[: 2 * size]
            for score, ids in found[:size]:
                if ids[-1] == end or step == new:
                    ended[group].append((score / step**length_penalty, ids))
            ended[group] = sorted(ended[group], key=lambda text: -text[0])[:size]
            live[group] = [text for text in found if text[1][-1] != end][:size]
            chosen += [ids[-1] for _, ids in live[group]]
            best = live[group][0][0] / step**length_penalty
            closed[group] = len(ended[group]) == size and best <= ended[group][-1][0]
    return ended
