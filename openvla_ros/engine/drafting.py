"""Which ids become the action: plain decoding, or a draft checked by the network itself.

This file knows rows of ids, margins and probabilities, and nothing of how they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from openvla_ros.engine.programs import Program, Rows
from openvla_ros.model.modeling import GeneratedTokens


@dataclass(frozen=True)
class Acceptance:
    """When drafted ids count.

    Attributes:
        margin: Least margin of ids that rest on the prompt's pass alone; it rounds otherwise than
            plain decoding does.
        passes_are_plain: Whether a pass of several rows gives each the bits of a pass of its own.
            Where it does not, a draft that is not confirmed whole is followed by plain decoding.
        tolerance: Bins by which an accepted id may differ from the network's own choice. Above 0
            the answer is another one, and no margin is asked for.
        action_ids: The ids a tolerance applies to; never EOS or a word.
    """

    margin: float
    passes_are_plain: bool
    tolerance: int = 0
    action_ids: range = range(0)

    def leading(self, drafted: Sequence[int], chosen: Sequence[int], most: int) -> int:
        """Return how many of the first `most` drafted ids stand before one does not."""
        for i in range(most):
            if not self._stands(drafted[i], chosen[i]):
                return i
        return most

    def _stands(self, drafted: int, chosen: int) -> bool:
        if drafted == chosen:
            return True
        near = abs(drafted - chosen) <= self.tolerance
        return near and drafted in self.action_ids and chosen in self.action_ids

    def confirms(self, rows: Rows) -> bool:
        """True when a draft that all rows agree with needs no pass to be sure."""
        # The first row has the bits of plain decoding. NaN is no margin.
        return self.tolerance > 0 or all(margin >= self.margin for margin in rows.margins[1:])


def decode_plainly(program: Program) -> GeneratedTokens:
    """Return one id after another for the program's inputs."""
    program.begin()
    return _answer(program, program.decode(), passes=program.action_dim)


def verify(program: Program, draft: Sequence[int], acceptance: Acceptance) -> GeneratedTokens:
    """Return the ids for the program's inputs, in no more passes than plain decoding.

    Args:
        program: Its inputs are loaded.
        draft: n ids.
        acceptance: When they count.
    """
    program.begin(draft)
    rows = program.drafted()
    accepted = acceptance.leading(draft, rows.ids, program.rows - 1)
    is_whole = accepted == program.action_dim - 1
    guard_fired = is_whole and not acceptance.confirms(rows)
    if is_whole and not guard_fired:
        ids = [*draft[:accepted], rows.ids[-1]]
        found, passes = Rows(ids, rows.margins, rows.probabilities, rows.logits), 1
    elif acceptance.passes_are_plain or acceptance.tolerance:
        guesses = [*draft[:accepted], *rows.ids[accepted:], *draft[program.rows :]]
        found, passes = _correct(program, guesses, rows, acceptance)
    else:
        found, passes = program.decode(), program.action_dim
    return _answer(
        program,
        _with_probabilities(found) if acceptance.tolerance else found,
        passes=passes,
        drafts_accepted=accepted,
        guard_fired=guard_fired,
    )


def _correct(
    program: Program, ids: list[int], rows: Rows, acceptance: Acceptance
) -> tuple[Rows, int]:
    """Return what passes over all remaining ids make of n guesses, and how many passes there were.

    The first begins at the first action id, whatever the prompt's pass confirmed: it costs the
    same, and every key, value and logit of it has the bits of plain decoding. Each settles at least
    one id.
    """
    n = program.action_dim
    missing = n - len(rows.ids)
    margins, chances = [*rows.margins, *[0.0] * missing], [*rows.probabilities, *[0.0] * missing]
    logits = rows.logits.new_empty(n, rows.logits.shape[1])
    logits[: len(rows.ids)] = rows.logits
    first, passes = 0, 1  # the id at `first` is settled, those after it are guesses
    while first < n - 1:
        found = program.check(ids, first)
        passes += 1
        count = min(len(found.ids), n - 1 - first)  # rows whose answers belong to this action
        answers = slice(first + 1, first + 1 + count)
        right = acceptance.leading(ids[answers], found.ids, count - 1)
        ids[first + 1 + right : answers.stop] = found.ids[right:count]
        margins[answers], chances[answers] = found.margins[:count], found.probabilities[:count]
        logits[answers] = found.logits[:count]
        first += right + 1
    return Rows(ids, margins, chances, logits), passes


def _with_probabilities(rows: Rows) -> Rows:
    """Return rows with the probabilities of their ids, which need not be the likeliest."""
    ids = torch.tensor(rows.ids, device=rows.logits.device)[:, None]
    chosen = rows.logits.gather(1, ids)[:, 0]
    chances = (chosen - rows.logits.logsumexp(dim=1)).exp().tolist()
    return Rows(rows.ids, rows.margins, chances, rows.logits)


def _answer(
    program: Program,
    rows: Rows,
    *,
    passes: int,
    drafts_accepted: int = 0,
    guard_fired: bool = False,
) -> GeneratedTokens:
    return GeneratedTokens(
        token_ids=rows.ids,
        token_probabilities=tuple(rows.probabilities),
        logits=rows.logits.clone(),  # the next run overwrites them
        timings=program.clock.timings(),
        passes=passes,
        drafts_accepted=drafts_accepted,
        margins=tuple(rows.margins),
        guard_fired=guard_fired,
    )
