"""Which tokens of many requests are computed once: contexts that several continuations share.

A request is a context and a continuation whose log-likelihood is asked for. Choices of one question share the context,
and questions with the same examples before them share those. So a batch of requests is cut into a stem that all of them
begin with, groups that share a prefix after it, and in each group branches, which are what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SHORTEST_STEM = 8
"""Tokens below which a common beginning isn't worth a pass of its own."""
WORTH_SHARING = 0.5
"""Share of a request's tokens before its continuation that a group must have in common with it to take it in."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of a branch.

    Attributes:
        request: index of the request.
        first: position in the branch whose logits predict the continuation's first token.
        tokens: the continuation.
    """

    request: int
    first: int
    tokens: Tokens


@dataclass(slots=True)
class Branch:
    """Tokens that follow a group's prefix, and the continuations whose logits they give."""

    tokens: Tokens
    targets: list[Target] = field(default_factory=list)


@dataclass(slots=True)
class Group:
    """Requests that share the tokens after the stem.

    Attributes:
        prefix: those tokens; may be empty. No logits of theirs are wanted.
        branches: what follows, longest first.
    """

    prefix: Tokens
    branches: list[Branch]


@dataclass(frozen=True, slots=True)
class Plan:
    """Attributes:
    stem: tokens that all requests begin with; empty if they are few.
    groups: in an order in which neighbours are alike in shape.
    """

    stem: Tokens
    groups: list[Group]

    @property
    def tokens(self) -> int:
        """Tokens that are computed, without padding."""
        return len(self.stem) + sum(
            len(group.prefix) + sum(len(branch.tokens) for branch in group.branches) for group in self.groups
        )


def make_plan(requests: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int) -> Plan:
    """Cut requests, pairs of context and continuation, into stem, groups and branches.

    Too long ones lose tokens at their beginning, as in lm-eval: `max_length` inputs predict the last token.

    Raises:
        ValueError: a context or a continuation is empty, or a continuation is longer than `max_length`.
    """
    rows = sorted(_cut(index, *request, max_length) for index, request in enumerate(requests))
    groups: list[tuple[int, list[_Request]]] = []
    for row in rows:
        if groups:
            shared, members = groups[-1]
            common = min(_common(members[0].inputs, row.inputs, shared), row.before)
            if common and common >= WORTH_SHARING * max(row.before, shared):
                groups[-1] = common, [*members, row]
                continue
        groups.append((row.before, [row]))
    stem = _stem([members[0].inputs[:shared] for shared, members in groups])
    made = [_group(members, len(stem), shared) for shared, members in groups]
    made.sort(key=lambda group: (-len(group.branches), -len(group.prefix)))
    return Plan(stem, made)


@dataclass(frozen=True, slots=True, order=True)
class _Request:
    inputs: Tokens
    index: int
    before: int
    continuation: Tokens


def _cut(index: int, context: Sequence[int], continuation: Sequence[int], max_length: int) -> _Request:
    if not context or not 0 < len(continuation) <= max_length:
        raise ValueError(
            f"request {index}: {len(context)} tokens of context and {len(continuation)} of continuation: must be at"
            f" least 1 each, and the continuation at most {max_length}"
        )
    inputs = tuple([*context, *continuation][-(max_length + 1) : -1])
    return _Request(inputs, index, len(inputs) - len(continuation), tuple(continuation))


def _common(first: Tokens, second: Tokens, most: int) -> int:
    limit = min(len(first), len(second), most)
    return next((index for index in range(limit) if first[index] != second[index]), limit)


def _stem(prefixes: list[Tokens]) -> Tokens:
    """Of sorted sequences, the first and the last have the least in common."""
    if len(prefixes) < 2:
        return ()
    shortest = min(map(len, prefixes))
    length = _common(prefixes[0], prefixes[-1], shortest)
    return prefixes[0][:length] if length >= SHORTEST_STEM else ()


def _group(members: list[_Request], stem: int, shared: int) -> Group:
    branches: dict[Tokens, Branch] = {}
    for row in members:
        tokens = row.inputs[shared:]
        branch = branches.setdefault(tokens, Branch(tokens))
        branch.targets.append(Target(row.index, row.before - shared, row.continuation))
    longest_first = sorted(branches.values(), key=lambda branch: (-len(branch.tokens), branch.tokens))
    return Group(members[0].inputs[stem:shared], longest_first)
