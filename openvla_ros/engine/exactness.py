"""`ActionDecoder`: the ids of one action after another, as exact as was asked for.

`self`: the ids that the same weights give when decoded plainly, whatever the draft was.
`hf`: the ids of the Hugging Face modules; where the engine's margin is too small to tell, those
modules decide. `approx`: ids up to some bins from the network's own choice, for fewer passes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from openvla_ros.config.policy import ENGINE_QUANTIZATIONS, EXACTNESS_LEVELS
from openvla_ros.engine.calibration import SAFETY_FACTOR, Differences, largest_change, step_of
from openvla_ros.engine.engine import Engine
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.modeling import GeneratedTokens, OpenVLAForActionPrediction
from openvla_ros.types import DecodingStatistics

#: No further calibration image is begun after so many seconds, but two are always used.
_CALIBRATION_S = 1.0
#: Drafts pause when they save fewer passes per action than this, averaged over the last actions: a
#: pass of several rows costs a little more than one, and the host waits for each.
_LEAST_SAVED = 0.25
_AVERAGED_ACTIONS = 8
_RETRY_EVERY = 16  # actions, while drafts pause


@dataclass(frozen=True)
class Exactness:
    """Whose ids an answer has.

    Attributes:
        level: One of `EXACTNESS_LEVELS`.
        drafts: Whether the action before is checked as a draft of the next.
        draft_tolerance: Bins by which an accepted id may be off, for `approx` alone.

    Raises:
        ConfigurationError: Unknown, or contradicting itself; the text says what to do.
    """

    level: str = "self"
    drafts: bool = True
    draft_tolerance: int = 1

    def __post_init__(self) -> None:
        if self.level not in EXACTNESS_LEVELS:
            raise ConfigurationError(
                f"exactness {self.level!r} is unknown; use one of {', '.join(EXACTNESS_LEVELS)}."
            )
        if self.draft_tolerance < 1:
            raise ConfigurationError(
                f"draft_tolerance is {self.draft_tolerance}; give 1 or more bins, or use exactness "
                "self."
            )
        if self.level == "approx" and not self.drafts:
            raise ConfigurationError("exactness 'approx' is about drafts, which are off. Use self.")

    @property
    def tolerance(self) -> int:
        """Bins by which an accepted id may be off: 0 unless `approx` was asked for."""
        return self.draft_tolerance if self.level == "approx" else 0

    def require(self, quantization: str, engine: str) -> None:
        """Return when a quantization and an engine ("auto", "off") leave what this level needs.

        Raises:
            ConfigurationError: It does not.
        """
        if self.level == "hf" and quantization in ENGINE_QUANTIZATIONS:
            raise ConfigurationError(
                "exactness 'hf' needs the Hugging Face modules, whose weights quantization "
                f"{quantization!r} releases. Use quantization none, or exactness self: the ids of "
                "the same quantised weights decoded plainly."
            )
        if self.level == "approx" and (
            engine == "off" or quantization not in ("none", *ENGINE_QUANTIZATIONS)
        ):
            raise _approx_without_engine()


class ActionDecoder:
    """Decodes actions at one level of exactness, and counts how. One thread uses it at a time.

    Args:
        model: The Hugging Face modules.
        engine: What runs them, or None when they run by themselves.
        exactness: Whose ids the actions have.

    Raises:
        ConfigurationError: The level cannot be had without an engine.
    """

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        engine: Engine | None,
        exactness: Exactness | None = None,
    ) -> None:
        exactness = exactness or Exactness()
        if exactness.level == "approx" and engine is None:
            raise _approx_without_engine()
        self.model = model
        self.engine = engine
        self.exactness = exactness.level
        self.tolerance = exactness.tolerance
        self.uses_drafts = exactness.drafts and engine is not None and exactness.level != "hf"
        #: exactness hf: margin between two logits from which on the modules would agree.
        self.model_margin = math.inf
        self.model_differences: Differences | None = None
        self.statistics = DecodingStatistics()
        self._previous: list[int] = []
        self._saved = math.inf  # passes per action, lately

    @property
    def choices(self) -> dict[str, str]:
        """Exactness and drafts as "value: reason"."""
        return {"exactness": self._exactness_choice(), "drafts": self._drafts_choice()}

    def forget(self) -> None:
        """Decode the next action as if it were the first one."""
        self._previous, self._saved = [], math.inf

    @torch.inference_mode()
    def generate(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, action_dim: int
    ) -> GeneratedTokens:
        """Return the ids of one action; the action before is the draft.

        Args:
            input_ids: (1, T) int64, ending in the empty token.
            pixel_values: (1, 3 or 6, H, W).
            action_dim: Number of ids.
        """
        is_drafted = self._wants_draft(action_dim)
        if is_drafted:
            tokens = self.generate_drafted(input_ids, pixel_values, self._previous)
        else:
            tokens = self.generate_plainly(input_ids, pixel_values, action_dim)
        self._count(tokens, is_drafted=is_drafted)
        self._previous = tokens.token_ids
        return tokens

    @torch.inference_mode()
    def generate_drafted(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, draft: Sequence[int]
    ) -> GeneratedTokens:
        """Return the ids of one action, of which `draft` is a guess; plainly where drafts are off.

        It is not counted.
        """
        if self.engine is None or not self.uses_drafts:
            return self.generate_plainly(input_ids, pixel_values, len(draft))
        return self.engine.verify_draft(
            input_ids, pixel_values, len(draft), draft, tolerance=self.tolerance
        )

    @torch.inference_mode()
    def generate_plainly(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, action_dim: int
    ) -> GeneratedTokens:
        """Return the ids of one action without a draft: the slow case. It is not counted."""
        if self.engine is None:
            return self.model.generate_action_tokens(input_ids, pixel_values, action_dim)
        tokens = self.engine.generate_action_tokens(input_ids, pixel_values, action_dim)
        if self.exactness != "hf" or all(m >= self.model_margin for m in tokens.margins):
            return tokens
        started = time.perf_counter()
        settled = self.model.generate_action_tokens(input_ids, pixel_values, action_dim)
        settle_ms = 1e3 * (time.perf_counter() - started)
        return replace(
            settled,
            timings={**tokens.timings, "settle_ms": settle_ms},
            passes=tokens.passes + settled.passes,
            settled_by_model=True,
        )

    def calibrate(
        self, input_ids: torch.Tensor, images: Sequence[torch.Tensor], action_dim: int
    ) -> None:
        """Measure how far two ways of computing a logit differ, where this exactness rests on it.

        Args:
            input_ids: (1, T).
            images: Pixel values (1, 3 or 6, H, W); at least two are used, the rest if time allows.
            action_dim: Number of ids.
        """
        if self.engine is None:
            return
        if self.exactness == "hf":
            found = None
            started = time.perf_counter()
            for seen in self._differences_to_model(input_ids, images, action_dim):
                found = seen if found is None else found.joined(seen)
                if found.images >= 2 and time.perf_counter() - started > _CALIBRATION_S:
                    break
            assert found is not None, "calibration needs an image"
            self.model_differences, self.model_margin = found, found.margin
        elif self.uses_drafts:
            self.engine.calibrate(input_ids, images, action_dim, within_s=_CALIBRATION_S)

    @torch.inference_mode()
    def _differences_to_model(
        self, input_ids: torch.Tensor, images: Sequence[torch.Tensor], action_dim: int
    ) -> Iterator[Differences]:
        assert self.engine is not None
        dtype = self.engine.language.weights.embedding.dtype
        for pixels in images:
            expected = self.model.generate_action_tokens(input_ids, pixels, action_dim)
            found = self.engine.generate_action_tokens(input_ids, pixels, action_dim)
            pairs = zip(found.token_ids, expected.token_ids, strict=True)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), action_dim - 1)
            rows = slice(0, same + 1)  # later ones answer another question
            change = largest_change(found.logits[rows], expected.logits[rows].to(found.logits))
            yield Differences(1, change, step_of(expected.logits, dtype))

    def _wants_draft(self, action_dim: int) -> bool:
        if not self.uses_drafts or len(self._previous) != action_dim:
            return False
        return self._saved >= _LEAST_SAVED or self.statistics.actions % _RETRY_EVERY == 0

    def _count(self, tokens: GeneratedTokens, *, is_drafted: bool) -> None:
        before = self.statistics
        accepted = list(before.accepted)
        if is_drafted:
            n = len(tokens.token_ids)
            accepted += [0] * (n - len(accepted))
            accepted[tokens.drafts_accepted] += 1
            self._remember_gain(n - tokens.passes)
        self.statistics = DecodingStatistics(
            actions=before.actions + 1,
            passes=before.passes + tokens.passes,
            drafted=before.drafted + is_drafted,
            accepted=tuple(accepted),
            guard_fired=before.guard_fired + tokens.guard_fired,
            settled_by_model=before.settled_by_model + tokens.settled_by_model,
        )

    def _remember_gain(self, saved: int) -> None:
        assert self.engine is not None
        if not self.engine.passes_are_plain and not self.tolerance:
            return  # a draft that is not confirmed whole costs nothing there
        start = saved if math.isinf(self._saved) else self._saved
        self._saved = start + (saved - start) / _AVERAGED_ACTIONS

    def _exactness_choice(self) -> str:
        if self.exactness == "approx":
            return f"approx: requested; an id may be {self.tolerance} bin(s) off the network's own"
        if self.engine is None:
            return f"{self.exactness}: the Hugging Face modules decode by themselves"
        if self.exactness == "self":
            return "self: the ids of the same weights decoded plainly"
        if self.model_differences is None:
            return "hf: not calibrated, so the Hugging Face modules decide everything"
        return (
            f"hf: requested; the Hugging Face modules decide below a margin of "
            f"{_margin_words(self.model_differences)}"
        )

    def _drafts_choice(self) -> str:
        if self.engine is None:
            return "off: only the engine can check them"
        if self.exactness == "hf":
            return "off: exactness is hf"
        if not self.uses_drafts:
            return "off: requested"
        if self.tolerance:
            return "the action before: checked by passes that accept near misses, unguarded"
        found = self.engine.differences
        if found is None:
            return "off: not calibrated yet"
        if not found.prompt_is_plain:
            return "off: the prompt's logits depend on what follows it on this machine"
        margin = _margin_words(found)
        if found.passes_are_plain:
            return f"the action before: checked by passes of several rows, guard {margin}"
        return (
            "the action before: counts only when the first pass confirms it whole, because passes "
            f"of several rows round otherwise here; guard {margin}"
        )


def _approx_without_engine() -> ConfigurationError:
    return ConfigurationError(
        "exactness 'approx' accepts drafts, which only the engine can check, and the engine is "
        "off. Use exactness self."
    )


def _margin_words(found: Differences) -> str:
    return (
        f"{found.margin:.3g} ({2 * SAFETY_FACTOR:g} × the largest change of a logit, "
        f"{found.change:.3g}, over {found.images} images)"
    )
