"""Every way of decoding gives the ids it promises: self, hf and approx, quantised or not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_networks import (
    ACTION_DIM,
    ACTION_IDS,
    EOS,
    VOCABULARY,
    small_inputs,
    small_model,
    with_rounding,
)

from openvla_ros.engine import exactness as module
from openvla_ros.engine.engine import Engine
from openvla_ros.engine.exactness import ActionDecoder, Exactness
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.modeling import OpenVLAForActionPrediction

#: Rounding of the disturbed engines: as large as a tenth of a usual margin.
ROUNDING = 0.3


@pytest.fixture(scope="module")
def reference() -> OpenVLAForActionPrediction:
    return small_model()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return calibrated(Engine(small_model()))


def calibrated(engine: Engine, images: int = 8) -> Engine:
    ids, _ = small_inputs(0, 20)
    engine.calibrate(ids, [small_inputs(1000 + i)[1] for i in range(images)], ACTION_DIM)
    return engine


def some_drafts(seed: int, plain: list[int], count: int) -> Iterator[list[int]]:
    """Right up to each place and then wrong, without one id, and any ids at all."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        kind, place = generator.integers(3), int(generator.integers(len(plain) + 1))
        draft = generator.integers(0, VOCABULARY, len(plain)).tolist()
        if kind == 0:
            draft = [*plain[:place], *draft[place:]]
        elif kind == 1 and place < len(plain):
            draft = [*plain[:place], draft[place], *plain[place + 1 :]]
        yield draft
    yield [EOS] * len(plain)
    yield plain


@pytest.mark.parametrize("passes", [True, False])
def test_drafts_give_the_ids_of_plain_decoding_for_every_prompt_length(
    passes: bool, engine: Engine, reference: OpenVLAForActionPrediction
) -> None:
    """2000 drafts over prompts of 1 .. 80 ids; answers hold EOS and words."""
    found_passes, engine.passes_are_plain = engine.passes_are_plain, passes
    seen: set[int] = set()
    mean = []
    for seed in range(80):
        ids, pixels = small_inputs(seed)
        plain = engine.generate_action_tokens(ids, pixels, ACTION_DIM)
        expected = reference.generate_action_tokens(ids, pixels, ACTION_DIM).token_ids
        assert plain.token_ids == expected
        seen |= set(expected)
        for draft in some_drafts(seed, plain.token_ids, 11):
            found = engine.verify_draft(ids, pixels, ACTION_DIM, draft)
            assert found.token_ids == expected, f"prompt {seed + 1}, draft {draft}"
            assert found.passes <= plain.passes == ACTION_DIM
            mean.append(found.passes)
    engine.passes_are_plain = found_passes
    assert EOS in seen and any(i not in ACTION_IDS for i in seen - {EOS}) and len(seen) > 40
    assert np.mean(mean) < (6 if passes else 6.9), "drafts save something"


@pytest.mark.parametrize("action_dim", [1, 2, 8, 10, 14])
def test_actions_of_any_length(
    action_dim: int, engine: Engine, reference: OpenVLAForActionPrediction
) -> None:
    """A pass has eight rows at most: longer actions take several."""
    for seed in range(4):
        ids, pixels = small_inputs(seed)
        expected = reference.generate_action_tokens(ids, pixels, action_dim).token_ids
        assert engine.generate_action_tokens(ids, pixels, action_dim).token_ids == expected
        for draft in some_drafts(seed, expected, 6):
            found = engine.verify_draft(ids, pixels, action_dim, draft)
            assert found.token_ids == expected
            assert found.passes <= action_dim


def test_of_equal_logits_the_lowest_id_wins_with_every_draft() -> None:
    """And a tie is never sure: the guard fires."""
    model = small_model()
    with torch.no_grad():
        head = model.language_model.lm_head.weight
        head[1::2] = head[0::2]
    engine = calibrated(Engine(model))
    for seed in range(10):
        ids, pixels = small_inputs(seed)
        plain = engine.generate_action_tokens(ids, pixels, ACTION_DIM).token_ids
        assert all(token % 2 == 0 for token in plain)
        for draft in some_drafts(seed, plain, 4):
            assert engine.verify_draft(ids, pixels, ACTION_DIM, draft).token_ids == plain
        assert engine.verify_draft(ids, pixels, ACTION_DIM, plain).guard_fired


def test_rounding_below_the_margin_changes_no_id() -> None:
    """Logits that depend on the number of rows: without the guard ids differ, with it none does."""
    engine = calibrated(with_rounding(Engine(small_model()), ROUNDING))
    assert not engine.passes_are_plain, "a pass of seven rows rounds otherwise than one of one"
    assert engine.margin > 2 * ROUNDING
    guarded, margin = counts(engine), engine.margin
    engine.margin = -math.inf
    unguarded = counts(engine)
    assert guarded["mismatches"] == 0
    assert unguarded["mismatches"] > 0, "the rounding is too small to show anything"
    assert 0 < guarded["fired"] < guarded["whole"], f"margin {margin:.3g}: {guarded}"


def counts(engine: Engine) -> dict[str, int]:
    found = {"mismatches": 0, "fired": 0, "whole": 0}
    for seed in range(60):
        ids, pixels = small_inputs(seed)
        plain = engine.generate_action_tokens(ids, pixels, ACTION_DIM).token_ids
        for draft in some_drafts(seed, plain, 3):
            tokens = engine.verify_draft(ids, pixels, ACTION_DIM, draft)
            found["mismatches"] += tokens.token_ids != plain
            found["fired"] += tokens.guard_fired
            found["whole"] += tokens.drafts_accepted == ACTION_DIM - 1
            assert tokens.passes <= ACTION_DIM
    return found


def test_before_calibration_a_draft_saves_nothing_and_changes_nothing() -> None:
    engine = Engine(small_model())
    ids, pixels = small_inputs(0)
    plain = engine.generate_action_tokens(ids, pixels, ACTION_DIM)
    found = engine.verify_draft(ids, pixels, ACTION_DIM, plain.token_ids)
    assert found.token_ids == plain.token_ids
    assert found.passes == ACTION_DIM and found.guard_fired


def test_a_prompt_that_depends_on_its_draft_is_found_and_drafts_are_ignored() -> None:
    engine = Engine(small_model())
    own = engine.language.prefill

    def leaky(x: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        logits, ids = own(x, wanted)
        return logits + x[-1].mean(), ids

    engine.language.prefill = leaky
    calibrated(engine)
    assert engine.differences is not None and not engine.differences.prompt_is_plain
    ids, pixels = small_inputs(0)
    plain = engine.generate_action_tokens(ids, pixels, ACTION_DIM)
    found = engine.verify_draft(ids, pixels, ACTION_DIM, plain.token_ids)
    assert torch.equal(found.logits, plain.logits) and found.passes == ACTION_DIM
    decoder = ActionDecoder(small_model(), engine)
    assert decoder.choices["drafts"].startswith("off: the prompt's logits depend")


@pytest.mark.parametrize("quantization", ["int8", "fp8", "int4"])
def test_a_quantised_engine_gives_its_own_plain_ids_for_every_draft(quantization: str) -> None:
    engine = calibrated(Engine(small_model(), quantization=quantization))
    found = counts(engine)
    assert found["mismatches"] == 0
    assert found["whole"] > 50


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_bfloat16_gives_its_own_plain_ids_for_every_draft(quantization: str) -> None:
    """Its rounding is real, and large: on some CPUs rows of one pass agree, on others not."""
    engine = calibrated(Engine(small_model().bfloat16(), quantization=quantization))
    found = counts(engine)
    assert found["mismatches"] == 0
    assert found["fired"] > 0


class TestDecoder:
    def test_the_action_before_is_the_draft(self) -> None:
        decoder = made("self")
        ids, pixels = small_inputs(3)
        first = decoder.generate(ids, pixels, ACTION_DIM)
        second = decoder.generate(ids, pixels, ACTION_DIM)
        other = decoder.generate(ids, small_inputs(4)[1], ACTION_DIM)
        assert (first.passes, first.drafts_accepted) == (ACTION_DIM, 0)
        assert (second.passes, second.drafts_accepted) == (1, ACTION_DIM - 1)
        assert second.token_ids == first.token_ids != other.token_ids
        assert decoder.statistics.actions == 3
        assert decoder.statistics.drafted == 2 == sum(decoder.statistics.accepted)
        assert decoder.statistics.accepted[ACTION_DIM - 1] == 1
        assert decoder.statistics.passes == 8 + other.passes
        assert decoder.statistics.mean_passes == pytest.approx((8 + other.passes) / 3)
        assert decoder.statistics.described()["drafted actions"] == "2"

    def test_a_trial_has_no_draft_and_is_not_counted(self) -> None:
        decoder = made("self")
        ids, pixels = small_inputs(3)
        for _ in range(2):
            assert decoder.generate_plainly(ids, pixels, ACTION_DIM).passes == ACTION_DIM
        assert decoder.statistics.actions == 0
        assert decoder.statistics.described() == {}
        assert math.isnan(decoder.statistics.mean_passes)

    def test_without_drafts_every_action_takes_the_same_passes(self) -> None:
        decoder = made("self", drafts=False)
        ids, pixels = small_inputs(3)
        assert [decoder.generate(ids, pixels, ACTION_DIM).passes for _ in range(3)] == [7, 7, 7]
        assert decoder.choices["drafts"] == "off: requested"
        assert decoder.statistics.drafted == 0

    def test_an_action_of_another_length_has_no_draft(self) -> None:
        decoder = made("self")
        ids, pixels = small_inputs(3)
        decoder.generate(ids, pixels, ACTION_DIM)
        assert decoder.generate(ids, pixels, 8).passes == 8

    def test_drafts_pause_while_they_save_nothing_and_are_tried_again(self) -> None:
        decoder = made("self")
        assert decoder.engine is not None
        decoder.engine.passes_are_plain = True
        decoder._saved = 0.0
        ids, pixels = small_inputs(3)
        for _ in range(2 * module._RETRY_EVERY):
            decoder.generate(ids, pixels, ACTION_DIM)
        assert decoder.statistics.drafted >= 1, "never tried again"
        assert decoder._saved >= module._LEAST_SAVED, "the draft is right and saves six passes"
        tried = decoder.statistics.drafted
        decoder.generate(ids, pixels, ACTION_DIM)
        assert decoder.statistics.drafted == tried + 1

    def test_choices_say_how_sure_a_draft_must_be(self) -> None:
        choice = made("self").choices["drafts"]
        assert re.search(r"guard \S+ \(3 × the largest change of a logit, \S+, over [2-8] ", choice)
        uncalibrated = ActionDecoder(small_model(), Engine(small_model()))
        assert uncalibrated.choices["drafts"] == "off: not calibrated yet"

    def test_without_an_engine_the_modules_decode(
        self, reference: OpenVLAForActionPrediction
    ) -> None:
        decoder = ActionDecoder(reference, None)
        ids, pixels = small_inputs(3)
        decoder.calibrate(ids, [pixels], ACTION_DIM)
        assert [decoder.generate(ids, pixels, ACTION_DIM).passes for _ in range(2)] == [7, 7]
        assert decoder.choices["drafts"] == "off: only the engine can check them"
        with pytest.raises(ConfigurationError, match="Use exactness self"):
            ActionDecoder(reference, None, Exactness("approx"))


class TestHuggingFace:
    def test_ids_are_those_of_the_modules_where_the_engine_alone_differs(
        self, reference: OpenVLAForActionPrediction
    ) -> None:
        decoder = made("hf", rounding=ROUNDING)
        assert decoder.engine is not None
        differ = 0
        for seed in range(80):
            ids, pixels = small_inputs(seed)
            expected = reference.generate_action_tokens(ids, pixels, ACTION_DIM).token_ids
            found = decoder.generate(ids, pixels, ACTION_DIM)
            assert found.token_ids == expected, f"input {seed}"
            assert found.passes == (2 * ACTION_DIM if found.settled_by_model else ACTION_DIM)
            assert ("settle_ms" in found.timings) == found.settled_by_model
            alone = decoder.engine.generate_action_tokens(ids, pixels, ACTION_DIM).token_ids
            differ += alone != expected
        settled = decoder.statistics.settled_by_model
        assert differ > 0, "the rounding is too small to show anything"
        assert differ <= settled < 80
        assert decoder.statistics.described()["settled by Hugging Face"] == str(settled)

    def test_without_rounding_hardly_any_action_is_settled_by_the_modules(self) -> None:
        decoder = made("hf")
        for seed in range(20):
            decoder.generate(*small_inputs(seed), ACTION_DIM)
        assert decoder.statistics.settled_by_model <= 1
        assert decoder.choices["drafts"] == "off: exactness is hf"
        assert "decide below a margin of" in decoder.choices["exactness"]

    def test_uncalibrated_the_modules_decide_everything(self) -> None:
        model = small_model()
        decoder = ActionDecoder(model, Engine(model), Exactness("hf"))
        assert decoder.generate(*small_inputs(1), ACTION_DIM).settled_by_model
        assert "not calibrated" in decoder.choices["exactness"]


class TestApprox:
    @pytest.mark.parametrize("tolerance", [1, 5])
    def test_an_id_differs_by_the_tolerance_at_most_and_only_among_action_ids(
        self, tolerance: int, engine: Engine, reference: OpenVLAForActionPrediction
    ) -> None:
        generator = np.random.default_rng(0)
        differ = 0
        for seed in range(25):
            ids, pixels = small_inputs(seed, 12)
            plain = engine.generate_action_tokens(ids, pixels, ACTION_DIM).token_ids
            near = np.array(plain) + generator.integers(-tolerance, tolerance + 1, ACTION_DIM)
            draft = np.clip(near, 0, VOCABULARY - 1).tolist()
            found = engine.verify_draft(ids, pixels, ACTION_DIM, draft, tolerance=tolerance)
            own = choices_after(reference, ids, pixels, found.token_ids)
            for token, choice in zip(found.token_ids, own, strict=True):
                is_near = abs(token - choice) <= tolerance and {token, choice} <= set(ACTION_IDS)
                assert token == choice or is_near, f"input {seed}: {found.token_ids}, {own}"
            assert found.passes <= ACTION_DIM
            differ += found.token_ids != plain
        assert differ > 3, "a tolerance that never changes an id shows nothing"

    def test_it_is_only_had_by_name(self, engine: Engine) -> None:
        assert made("self").tolerance == 0
        approx = made("approx", draft_tolerance=3)
        assert approx.tolerance == 3
        assert approx.choices["exactness"].startswith("approx: requested")
        ids, pixels = small_inputs(0)
        with pytest.raises(ConfigurationError, match="tolerance is -1"):
            engine.verify_draft(ids, pixels, ACTION_DIM, [0] * ACTION_DIM, tolerance=-1)


def choices_after(
    model: OpenVLAForActionPrediction, ids: torch.Tensor, pixels: torch.Tensor, given: list[int]
) -> list[int]:
    """Return what the modules choose at each place after the ids given before it."""
    with torch.inference_mode():
        logits, cache = model.prefill(ids, pixels)
        chosen = [int(logits.argmax())]
        for token in given[:-1]:
            chosen.append(int(model.decode(torch.tensor([[token]]), cache).argmax()))
    return chosen


def made(exactness: str, rounding: float = 0.0, **options: object) -> ActionDecoder:
    """A calibrated decoder around a small network."""
    model = small_model()
    engine = Engine(model)
    if rounding:
        with_rounding(engine, rounding)
    decoder = ActionDecoder(model, engine, Exactness(exactness, **options))
    ids, _ = small_inputs(0, 20)
    decoder.calibrate(ids, [small_inputs(1000 + i)[1] for i in range(8)], ACTION_DIM)
    return decoder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"level": "exact"}, "use one of self, hf, approx"),
        ({"level": "approx", "drafts": False}, "about drafts, which are off"),
        ({"level": "approx", "draft_tolerance": 0}, "1 or more bins"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(given: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Exactness(**given)


@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4"])
def test_hf_needs_weights_that_a_quantised_engine_releases(quantization: str) -> None:
    Exactness("self").require(quantization, "auto")
    Exactness("hf").require("none", "auto")
    with pytest.raises(ConfigurationError, match=f"{quantization}.*quantization none, or exactnes"):
        Exactness("hf").require(quantization, "auto")
