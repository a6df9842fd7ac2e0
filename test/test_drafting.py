"""Drafts against a network made of a table: thousands of them, with rounding where there is any.

The table says what follows each sequence of ids and by what margin. Positions remember what they
hold, and whether they were computed as plain decoding computes them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch

from openvla_ros.engine.drafting import Acceptance, decode_plainly, verify
from openvla_ros.engine.programs import MAX_ROWS, Rows

IDS = 6  # few, so that drafts are often right by chance
ACTION_IDS = range(2, IDS)
ROUNDING = 0.2  # a margin below this may turn round


class TableProgram:
    """What `Program` is to the rest, over a table of answers instead of a network."""

    def __init__(self, seed: int, action_dim: int, *, passes_are_plain: bool = True) -> None:
        self.seed = seed
        self.action_dim = action_dim
        self.rows = min(action_dim, MAX_ROWS)
        self.passes_are_plain = passes_are_plain
        self.clock = self
        self.passes = 0
        self._cache: list[tuple[int, bool]] = [(0, False)] * (2 * action_dim)  # id, is it plain?
        self._drafted: Sequence[int] = []

    def timings(self) -> dict[str, float]:
        return {}

    def begin(self, draft: Sequence[int] | None = None) -> None:
        self.passes += 1
        self._drafted = [0] * self.action_dim if draft is None else draft
        for place, token in enumerate(self._drafted[: self.rows - 1]):
            self._cache[place] = (token, False)

    def drafted(self) -> Rows:
        return self._rows([self._answer(count) for count in range(self.rows)])

    def decode(self) -> Rows:
        answers = [self._answer(0)]
        for place in range(self.action_dim - 1):
            self.passes += 1
            self._cache[place] = (answers[-1][0], True)
            answers.append(self._answer(place + 1))
        return self._rows(answers)

    def check(self, ids: Sequence[int], first: int) -> Rows:
        self.passes += 1
        taken = [*ids[first : first + self.rows], *([0] * self.rows)][: self.rows]
        for place, token in enumerate(taken, start=first):
            self._cache[place] = (token, self.passes_are_plain)
        return self._rows([self._answer(first + i + 1) for i in range(self.rows)])

    def _answer(self, count: int) -> tuple[int, float]:
        """What follows the first `count` ids in the cache; rounding may change it."""
        before = self._cache[:count]
        token, margin = table(self.seed, tuple(token for token, _ in before))
        is_plain = all(plain for _, plain in before)
        if not is_plain and margin < ROUNDING and random.Random(margin).random() < 0.5:
            token = (token + 1) % IDS
        return token, margin

    def _rows(self, answers: Sequence[tuple[int, float]]) -> Rows:
        logits = torch.zeros(len(answers), IDS)
        for row, (token, margin) in zip(logits, answers, strict=True):
            row[token] = 1.0 + margin
        ids, margins = [token for token, _ in answers], [margin for _, margin in answers]
        return Rows(ids, margins, [0.5] * len(answers), logits)


def table(seed: int, before: tuple[int, ...]) -> tuple[int, float]:
    """What follows some ids, and by what margin."""
    draw = random.Random(f"{seed} {before}")
    return draw.randrange(IDS), draw.random()


def drafts(seed: int, right: Sequence[int]) -> list[list[int]]:
    """The right ids, all wrong, right up to each place, and any."""
    draw = random.Random(seed)
    wrong = [(token + 1) % IDS for token in right]
    until = [[*right[:k], *wrong[k:]] for k in range(len(right) + 1)]
    without_one = [[*right[:k], wrong[k], *right[k + 1 :]] for k in range(len(right))]
    return [*until, *without_one, *([draw.randrange(IDS) for _ in right] for _ in range(10))]


def cases(action_dim: int, seeds: int) -> list[tuple[int, list[int], list[int]]]:
    """Seed, plain ids and draft."""
    found = []
    for seed in range(seeds):
        plain = decode_plainly(TableProgram(seed, action_dim)).token_ids
        found += [(seed, plain, draft) for draft in drafts(seed, plain)]
    return found


@pytest.mark.parametrize("action_dim", [1, 2, 7, 8, 10, 14])
@pytest.mark.parametrize("passes_are_plain", [True, False])
def test_any_draft_gives_the_ids_of_plain_decoding_in_no_more_passes(
    action_dim: int, passes_are_plain: bool
) -> None:
    acceptance = Acceptance(ROUNDING, passes_are_plain)
    for seed, plain, draft in cases(action_dim, 25):
        program = TableProgram(seed, action_dim, passes_are_plain=passes_are_plain)
        found = verify(program, draft, acceptance)
        assert found.token_ids == plain, f"seed {seed}, draft {draft}"
        assert found.passes == program.passes <= action_dim
        assert found.drafts_accepted <= min(action_dim - 1, MAX_ROWS - 1)
        assert [int(row.argmax()) for row in found.logits] == plain
        assert len(found.margins) == len(found.token_probabilities) == action_dim


def test_a_right_draft_takes_one_pass_unless_a_margin_is_small() -> None:
    fired = 0
    for seed in range(200):
        plain = decode_plainly(TableProgram(seed, 7))
        found = verify(TableProgram(seed, 7), plain.token_ids, Acceptance(ROUNDING, True))
        is_doubtful = min(found.margins[1:]) < ROUNDING
        fired += found.guard_fired
        if found.drafts_accepted == 6:
            assert found.guard_fired == is_doubtful
            assert found.passes == (2 if is_doubtful else 1)
    assert 50 < fired < 190


def test_without_the_guard_rounding_changes_ids() -> None:
    """Otherwise the tests above would not show that the guard does anything."""
    unguarded = Acceptance(0.0, True)
    differ = sum(
        verify(TableProgram(seed, 7), draft, unguarded).token_ids != plain
        for seed, plain, draft in cases(7, 30)
    )
    assert differ > 10


def test_a_margin_that_is_no_number_is_never_enough() -> None:
    program = TableProgram(0, 7)
    plain = decode_plainly(program).token_ids
    rows = Rows(plain, [float("nan")] * 7, [0.5] * 7, torch.zeros(7, IDS))
    assert not Acceptance(0.0, True).confirms(rows)


def test_each_pass_uses_what_the_one_before_it_found() -> None:
    """A network that answers by place, not by what came before, found all of it at once."""

    class ByPlace(TableProgram):
        def _answer(self, count: int) -> tuple[int, float]:
            return count % IDS, 1.0

    found = verify(ByPlace(0, 7), [5] * 7, Acceptance(0.1, True))
    assert found.token_ids == [place % IDS for place in range(7)]
    assert found.passes == 2  # the prompt's, and one that confirms what it found


@pytest.mark.parametrize("tolerance", [1, 2])
def test_a_tolerance_accepts_near_action_ids_and_nothing_else(tolerance: int) -> None:
    acceptance = Acceptance(ROUNDING, True, tolerance, ACTION_IDS)
    differ = 0
    for seed, plain, draft in cases(7, 30):
        program = ExactTable(seed, 7)
        found = verify(program, draft, acceptance)
        assert found.passes == program.passes <= 7
        for place, token in enumerate(found.token_ids):
            own, _ = table(seed, tuple(found.token_ids[:place]))
            is_near = abs(token - own) <= tolerance and {token, own} <= set(ACTION_IDS)
            assert token == own or is_near, f"seed {seed}, draft {draft}, place {place}"
        differ += found.token_ids != plain
        assert found.token_probabilities != tuple([0.5] * 7)  # computed for the ids returned
    assert differ > 50


class ExactTable(TableProgram):
    """Without rounding, so that the network's own choice is the same in every pass."""

    def _answer(self, count: int) -> tuple[int, float]:
        return table(self.seed, tuple(token for token, _ in self._cache[:count]))


def test_a_tolerance_saves_passes() -> None:
    spent = {0: 0, 1: 0}
    for (seed, _, draft), tolerance in itertools.product(cases(7, 15), spent):
        acceptance = Acceptance(0.0, True, tolerance, ACTION_IDS)
        spent[tolerance] += verify(ExactTable(seed, 7), draft, acceptance).passes
    assert spent[1] < 0.9 * spent[0], spent
