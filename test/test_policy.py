"""Golden source: openvla @ c8f03f4, predict_action, on a CPU in float32."""

from __future__ import annotations

import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openvla_ros.errors import (
    ActionStatsError,
    ConfigurationError,
    ImageError,
    InstructionError,
    SelfTestError,
)
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.modeling import GeneratedTokens
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.types import STAGES, Observation

torch.set_num_threads(1)  # waking others takes longer than these networks

ROOT = Path(__file__).resolve().parent / "reference"
CASES = json.loads((ROOT / "goldens" / "index.json").read_text())["cases"]
INSTRUCTION = "put the carrot in the bowl"


@pytest.fixture(scope="module")
def policies(reference_checkpoints: Path) -> dict[str, OpenVLAPolicy]:
    return {
        folder.name: OpenVLAPolicy.from_pretrained(folder)
        for folder in reference_checkpoints.iterdir()
    }


@pytest.fixture
def policy(reference_checkpoints: Path) -> OpenVLAPolicy:
    """A policy that the test may damage."""
    return OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused")


@pytest.fixture
def image() -> np.ndarray:
    return np.array(Image.open(ROOT / "images" / "img1_640x480.png").convert("RGB"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_tokens_and_actions_equal_the_reference(case: dict, policies: dict) -> None:
    instruction = case["prompt"].split("robot take to ")[1].split("?")[0]
    prediction = policies[case["checkpoint"]].predict_action(
        Image.open(ROOT / "images" / case["image"]),
        instruction.upper(),  # the policy lower-cases it
        unnorm_key=case["unnorm_key"],
    )
    golden = np.load(ROOT / "goldens" / case["file"])
    assert prediction.prompt == case["prompt"].rstrip()
    assert prediction.token_ids == case["tokens"]
    assert prediction.action.tolist() == case["action"]
    assert prediction.action.dtype == np.float64
    assert prediction.normalized.tolist() == golden["normalized_action"].tolist()
    assert prediction.is_valid


def test_a_prediction_tells_its_stages(policies: dict, image: np.ndarray) -> None:
    prediction = policies["A_fused"].predict(Observation({"primary": image}, INSTRUCTION))
    stages = {"preprocess_ms", "copy_ms", "towers_ms", "prefill_ms", "decode_ms"}
    assert set(prediction.timings) == stages | {"total_ms"}
    assert prediction.timings["total_ms"] >= sum(prediction.timings[name] for name in stages)
    assert prediction.passes == 7
    assert all(0 < p <= 1 for p in prediction.token_probabilities)
    assert prediction.actions.shape == (1, 7)


def test_an_observation_is_predicted_from_its_primary_image(
    policies: dict, image: np.ndarray
) -> None:
    policy = policies["A_fused"]
    other = np.zeros_like(image)
    observation = Observation({"primary": image, "wrist": other}, INSTRUCTION)
    assert policy.predict(observation).token_ids == (
        policy.predict_action(image, INSTRUCTION).token_ids
    )
    with pytest.raises(ImageError, match="wrist"):
        policy.predict(Observation({"wrist": image}, INSTRUCTION))


def test_what_is_prepared_in_another_thread_gives_the_same_answer(
    policies: dict, image: np.ndarray
) -> None:
    policy, prepared = policies["A_fused"], []
    other = np.ascontiguousarray(image[:, ::-1])
    images = (image, other)
    expected = [policy.predict_action(each, INSTRUCTION).token_ids for each in images]
    assert expected[0] != expected[1]

    def prepare() -> None:
        prepared.extend(policy.prepare(Observation({"primary": i}, INSTRUCTION)) for i in images)

    thread = threading.Thread(target=prepare)
    thread.start()
    meanwhile = policy.predict_action(image, INSTRUCTION).token_ids
    thread.join()
    assert meanwhile == expected[0]
    assert [policy.predict(each).token_ids for each in prepared] == expected
    assert all(each.instruction == INSTRUCTION for each in prepared)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_pixels_prepared_for_a_gpu_are_pinned_and_change_no_token(
    tiny_checkpoint: Path, image: np.ndarray
) -> None:
    """Prepared by other threads, also while graphs are recorded for a prompt of a new length."""
    policy = OpenVLAPolicy.from_pretrained(tiny_checkpoint, device="cuda")
    engine = policy.engine
    assert engine is not None
    images = [np.roll(image, 16 * k, axis=1) for k in range(8)]
    prepared: list[Observation] = []
    for words in ("pick", "pick up", "pick up the", "pick up the red"):

        def prepare(words: str = words) -> None:
            prepared.extend(policy.prepare(Observation({"primary": i}, words)) for i in images)

        thread = threading.Thread(target=prepare)
        thread.start()
        policy.predict_action(image, words)
        thread.join()
    for observation in prepared:
        inputs = observation.prepared.inputs
        assert inputs.pixel_values.is_pinned()
        pageable = inputs.pixel_values.clone()
        assert not pageable.is_pinned()
        expected = engine.generate_action_tokens(inputs.input_ids, pageable, 7)
        assert policy.predict(observation).token_ids == expected.token_ids


@pytest.mark.parametrize("engine", ["auto", "off"])
def test_stages_are_told_in_their_order_with_the_engine_and_without(
    engine: str, tiny_checkpoint: Path
) -> None:
    policy = OpenVLAPolicy.from_pretrained(tiny_checkpoint, device="cpu", engine=engine)
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    plain = ["preprocess_ms", "copy_ms", "towers_ms", "prefill_ms", "decode_ms", "total_ms"]
    trial, *others = (
        list(policy.predict(Observation({"primary": image}, INSTRUCTION, stamp_ns=k)).timings)
        for k in range(3)
    )
    assert trial == plain
    for told in others:  # from the second frame on there may be a draft
        assert told == [stage for stage in STAGES if stage in told]
        assert set(plain[:4]) <= set(told)


def test_colour_order_changes_the_tokens(policies: dict, image: np.ndarray) -> None:
    predict = policies["A_fused"].predict_action
    swapped = image[..., ::-1]
    assert predict(image, INSTRUCTION).token_ids != predict(swapped, INSTRUCTION).token_ids


def test_an_id_outside_the_action_range_keeps_its_number_and_is_marked(
    policy: OpenVLAPolicy, image: np.ndarray
) -> None:
    """The reference clips a text token to an extreme bin: a full-speed command, without a word."""
    clean = policy.predict_action(image, INSTRUCTION)
    with torch.no_grad():
        head = policy.model.language_model.lm_head.weight
        head[1000] = 50 * head[clean.token_ids[0]]
    marked = policy.predict_action(image, INSTRUCTION)
    assert marked.token_ids[0] == 1000
    assert 0 in marked.invalid_dims
    assert not marked.is_valid
    assert marked.normalized[0] == pytest.approx(1 - 1 / 255)
    assert marked.action[0] == pytest.approx(0.0279, abs=1e-4)  # nearly q99 of tiny_bridge


def test_statistics_with_ten_numbers_generate_ten_tokens(
    reference_checkpoints: Path, tmp_path: Path, image: np.ndarray
) -> None:
    folder = Path(shutil.copytree(reference_checkpoints / "A_fused", tmp_path / "checkpoint"))
    entry = {"action": {"q01": [-1.0] * 10, "q99": [1.0] * 10}}
    (folder / "dataset_statistics.json").write_text(json.dumps({"droid_r6": entry}))
    policy = OpenVLAPolicy.from_pretrained(folder)
    prediction = policy.predict_action(image, INSTRUCTION, unnorm_key="droid_r6")
    assert len(prediction.token_ids) == 10
    assert prediction.action.shape == (10,)
    seven = policy.predict_action(image, INSTRUCTION, unnorm_key="tiny_bridge")
    assert prediction.token_ids[:7] == seven.token_ids


def test_with_several_statistics_one_must_be_chosen(
    reference_checkpoints: Path, tmp_path: Path, image: np.ndarray
) -> None:
    folder = Path(shutil.copytree(reference_checkpoints / "A_fused", tmp_path / "checkpoint"))
    entry = {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}
    (folder / "dataset_statistics.json").write_text(json.dumps({"mine": entry}))
    policy = OpenVLAPolicy.from_pretrained(folder)
    policy.self_test()  # needs no statistics
    with pytest.raises(ActionStatsError, match="mine, tiny_bridge"):
        policy.predict_action(image, INSTRUCTION)
    with pytest.raises(ActionStatsError, match="mine, tiny_bridge"):
        OpenVLAPolicy.from_pretrained(folder, unnorm_key="bridge_orig")
    chosen = OpenVLAPolicy.from_pretrained(folder, unnorm_key="mine")
    assert chosen.predict_action(image, INSTRUCTION).unnorm_key == "mine"


def test_image_options_given_at_load_are_applied(
    reference_checkpoints: Path, image: np.ndarray
) -> None:
    options = ImageOptions(lanczos3=True, center_crop=True)
    policy = OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused", image_options=options)
    plain = OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused")
    cropped = options.apply(image)
    assert policy.predict_action(image, INSTRUCTION).token_ids == (
        plain.predict_action(cropped, INSTRUCTION).token_ids
    )
    assert policy.info.choices["image path"] == (
        "lanczos3, then center_crop: as the checkpoint says, and as requested"
    )


def test_every_expensive_choice_has_a_reason(policies: dict) -> None:
    choices = policies["A_fused"].info.choices
    assert {"device", "dtype", "attention", "quantization", "adapter"} <= set(choices)
    assert all(": " in choice for choice in choices.values())


def test_bfloat16_answers_with_action_tokens(
    reference_checkpoints: Path, image: np.ndarray
) -> None:
    policy = OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused", dtype="bfloat16")
    assert policy.model.dtype == torch.bfloat16
    policy.self_test()
    assert policy.predict_action(image, INSTRUCTION).is_valid


def test_eager_attention_gives_the_same_tokens(
    reference_checkpoints: Path, policies: dict, image: np.ndarray
) -> None:
    """The reference crashes here: it appends a token without extending the mask."""
    eager = OpenVLAPolicy.from_pretrained(
        reference_checkpoints / "A_fused", attn_implementation="eager"
    )
    assert eager.predict_action(image, INSTRUCTION).token_ids == (
        policies["A_fused"].predict_action(image, INSTRUCTION).token_ids
    )


def test_how_to_apply_an_adapter_does_not_matter_without_one(reference_checkpoints: Path) -> None:
    policy = OpenVLAPolicy.from_pretrained(
        reference_checkpoints / "A_fused",
        device="cpu",
        quantization="int8",
        adapter_mode="attach",
    )
    assert policy.info.choices["adapter"].startswith("none")


def test_merging_into_quantised_weights_is_refused(reference_checkpoints: Path) -> None:
    adapter = ROOT / "checkpoints" / "A_lora_adapter"
    with pytest.raises(ConfigurationError, match="attach"):
        OpenVLAPolicy.from_pretrained(
            reference_checkpoints / "A_fused",
            adapter=adapter,
            adapter_mode="merge",
            quantization="nf4",
        )
    with pytest.raises(ConfigurationError, match="merge, attach"):
        OpenVLAPolicy.from_pretrained(
            reference_checkpoints / "A_fused", adapter=adapter, adapter_mode="glue"
        )


def test_an_empty_instruction_is_refused(policies: dict, image: np.ndarray) -> None:
    with pytest.raises(InstructionError):
        policies["A_fused"].predict_action(image, " ")


class TestSelfTest:
    def test_a_healthy_policy_passes(self, policies: dict) -> None:
        for policy in policies.values():
            policy.self_test()

    @pytest.mark.parametrize("where", ["model", "vision_backbone"])
    def test_a_model_whose_pixels_are_zeroed_is_refused(
        self, reference_checkpoints: Path, where: str
    ) -> None:
        """What newer transformers do to the original class: the image never arrives."""
        # Without the engine, which does not call the modules that are tampered with here.
        policy = OpenVLAPolicy.from_pretrained(
            reference_checkpoints / "A_fused", device="cpu", dtype="float32", engine="off"
        )

        def zero_kwargs(module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            images = {name: kwargs.get(name) for name in ("pixel_values", "patches")}
            lost = {n: torch.zeros_like(image) for n, image in images.items() if image is not None}
            return args, kwargs | lost

        def zero_args(module: object, args: tuple) -> tuple:
            return (torch.zeros_like(args[0]), *args[1:])

        if where == "model":
            policy.model.register_forward_pre_hook(zero_kwargs, with_kwargs=True)
        else:
            policy.model.vision_backbone.register_forward_pre_hook(zero_args)
        with pytest.raises(SelfTestError, match="does not look at its image"):
            policy.self_test()

    def test_a_model_whose_image_embeddings_vanish_is_refused(self, policy: OpenVLAPolicy) -> None:
        policy.model.projector.register_forward_hook(lambda m, args, out: torch.zeros_like(out))
        with pytest.raises(SelfTestError, match="does not look at its image"):
            policy.self_test()

    def test_logits_that_are_not_finite_are_refused(self, policy: OpenVLAPolicy) -> None:
        with torch.no_grad():
            policy.model.projector.fc1.bias.fill_(float("nan"))
        with pytest.raises(SelfTestError, match="not finite"):
            policy.self_test()

    def test_answers_that_change_for_the_same_frame_are_refused(
        self, policy: OpenVLAPolicy
    ) -> None:
        noise = torch.Generator().manual_seed(0)

        def disturb(module: object, args: tuple, out: torch.Tensor) -> torch.Tensor:
            return out + 100 * torch.randn(out.shape, generator=noise)

        policy.model.projector.register_forward_hook(disturb)
        with pytest.raises(SelfTestError, match="repeatably"):
            policy.self_test()


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_the_engine_gives_the_actions_of_the_plain_model(
    quantization: str, tiny_checkpoint: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    options = {"device": "cpu", "dtype": "float32"}
    plain = OpenVLAPolicy.from_pretrained(tiny_checkpoint, engine="off", **options)
    fast = OpenVLAPolicy.from_pretrained(tiny_checkpoint, quantization=quantization, **options)
    assert plain.info.choices["engine"] == "off: requested"
    assert fast.info.choices["engine"].startswith("torch: ")
    fast.self_test()
    if quantization == "none":
        expected, found = (p.predict_action(image, "lift the lid") for p in (plain, fast))
        assert found.token_ids == expected.token_ids
        assert "towers_ms" in found.timings
    with pytest.raises(ConfigurationError, match="int8"):
        OpenVLAPolicy.from_pretrained(tiny_checkpoint, engine="off", quantization="int8", **options)


class TestDrafts:
    """A camera's next frame often has the same answer: the action before is its draft."""

    def frames(self) -> list[np.ndarray]:
        picture = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
        return [np.roll(picture, shift, axis=1) for shift in (0, 0, 1, 1, 30, 30, 30)]

    def test_actions_with_drafts_equal_those_without(self, tiny_checkpoint: Path) -> None:
        plain, drafted = (
            OpenVLAPolicy.from_pretrained(tiny_checkpoint, device="cpu", drafts=drafts)
            for drafts in (False, True)
        )
        for frame in self.frames():
            expected = plain.predict_action(frame, INSTRUCTION)
            found = drafted.predict_action(frame, INSTRUCTION)
            assert found.token_ids == expected.token_ids
            assert found.passes <= expected.passes == 7
        statistics = drafted.statistics
        assert statistics.actions == 7
        assert statistics.drafted == sum(statistics.accepted) == 6
        assert statistics.accepted[6] >= 4, "a repeated frame has the same answer"
        assert statistics.passes < 7 * 7 == plain.statistics.passes
        assert plain.info.choices["drafts"] == "off: requested"

    def test_how_exact_it_is_stands_among_the_choices(self, policies: dict) -> None:
        choices = policies["A_fused"].info.choices
        assert choices["exactness"] == "self: the ids of the same weights decoded plainly"
        assert re.search(r"guard \S+ \(3 × the largest change .* over [2-8] im", choices["drafts"])

    def test_an_observation_without_a_stamp_is_a_trial(
        self, reference_checkpoints: Path, image: np.ndarray
    ) -> None:
        """The node measures the latency of an action that no draft makes faster."""
        policy = OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused")
        trial = Observation({"primary": image}, INSTRUCTION)
        assert [policy.predict(trial).passes for _ in range(2)] == [7, 7]
        assert policy.statistics.actions == 0
        real = Observation({"primary": image}, INSTRUCTION, stamp_ns=1)
        predictions = [policy.predict(real) for _ in range(2)]
        assert [p.passes for p in predictions] == [7, 1]
        assert [p.drafts_accepted for p in predictions] == [0, 6]

    def test_a_self_test_refuses_drafts_that_change_the_answer(self, policy: OpenVLAPolicy) -> None:
        assert policy.engine is not None
        verify = policy.engine.verify_draft

        def broken(*args: object, **options: object) -> GeneratedTokens:
            tokens = verify(*args, **options)
            return replace(tokens, token_ids=[31999, *tokens.token_ids[1:]])

        policy.engine.verify_draft = broken
        with pytest.raises(SelfTestError, match="Use drafts: false"):
            policy.self_test()

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_hf_keeps_the_modules_that_decide(self, dtype: str, tiny_checkpoint: Path) -> None:
        options = {"device": "cpu", "dtype": dtype}
        plain = OpenVLAPolicy.from_pretrained(tiny_checkpoint, engine="off", **options)
        policy = OpenVLAPolicy.from_pretrained(tiny_checkpoint, exactness="hf", **options)
        policy.decoder.model_margin = float("inf")  # every action is settled by them
        for frame in self.frames():
            found = policy.predict_action(frame, INSTRUCTION)
            assert found.token_ids == plain.predict_action(frame, INSTRUCTION).token_ids
            assert found.timings["settle_ms"] > 0
        assert policy.statistics.settled_by_model == policy.statistics.actions == 7

    @pytest.mark.parametrize("exactness", ["hf", "approx"])
    def test_the_other_levels_are_had_by_name(
        self, exactness: str, reference_checkpoints: Path, policies: dict, image: np.ndarray
    ) -> None:
        policy = OpenVLAPolicy.from_pretrained(
            reference_checkpoints / "A_fused", exactness=exactness
        )
        policy.self_test()
        assert policy.info.choices["exactness"].startswith(f"{exactness}: requested")
        first = policy.predict_action(image, INSTRUCTION)
        assert first.token_ids == policies["A_fused"].predict_action(image, INSTRUCTION).token_ids
