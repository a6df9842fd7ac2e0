"""What a replay evaluates: names, `--compare`, and policies as they are asked for."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from replay_cases import pixel_variant, shared_checkpoint

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.replay.variants import (
    MadeVariant,
    Variant,
    parse_comparison,
    require_distinct,
)
from openvla_ros.model.image_options import ImageOptions

BASE = Variant("base", "some/checkpoint", unnorm_key="bridge_orig", device="cpu")


def test_a_comparison_changes_what_it_names_and_keeps_the_rest() -> None:
    found = parse_comparison("fast: quantization=int4 ,exactness=approx", BASE)
    assert found == replace(BASE, name="fast", quantization="int4", exactness="approx")
    other = parse_comparison("mine:checkpoint=/a/b,adapter=c/d,unnorm_key=x,center_crop=true", BASE)
    assert (other.checkpoint, other.adapter, other.unnorm_key) == ("/a/b", "c/d", "x")
    assert other.center_crop is True and other.lanczos3 is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quantization=int4", "NAME:key=value"),
        ("fast:", "NAME:key=value"),
        ("fast:int4", "is not key=value"),
        ("fast:bits=4", "bits is not a key.*quantization=none|fp8"),
        ("fast:quantization=int3", "'int3'; use one of none, fp8, int8"),
        ("fast:center_crop=yes", "'yes'; use one of true, false"),
        ("fast:dtype=float64", "'float64'; use one of auto"),
        ("fast:dtype=auto,dtype=float32", "dtype twice"),
        ("fast:checkpoint=", "is empty"),
        ("../up:dtype=auto", "cannot name a folder"),
        (":dtype=auto", "cannot name a folder"),
    ],
)
def test_a_comparison_that_cannot_be_meant_is_refused_with_what_is_allowed(text, said) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("|", r"\|")):
        parse_comparison(text, BASE)


def test_a_fine_tuned_variant_answers_in_its_own_units(tmp_path: Path) -> None:
    """It used to take over the key of the base, and every error was one of units."""
    result = tmp_path / "result"
    result.mkdir()
    (result / "finetune.json").write_text("{}")
    (result / "dataset_statistics.json").write_text('{"my_robot": {}}')
    base = Variant("base", checkpoint="openvla/openvla-7b", unnorm_key="bridge_orig")
    for key in ("checkpoint", "adapter"):
        assert parse_comparison(f"tuned:{key}={result}", base).unnorm_key == "my_robot"
        named = parse_comparison(f"tuned:{key}={result},unnorm_key=viola", base)
        assert named.unnorm_key == "viola"
    assert parse_comparison("int4:quantization=int4", base).unnorm_key == "bridge_orig"


def test_two_variants_of_one_name_are_refused() -> None:
    require_distinct([BASE, replace(BASE, name="other")])
    with pytest.raises(ConfigurationError, match="base"):
        require_distinct([BASE, replace(BASE, name="Base")])  # one folder on some file systems
    with pytest.raises(ConfigurationError, match="no variant"):
        require_distinct([])


def test_a_variant_goes_to_another_process_and_says_what_it_is() -> None:
    for variant in (BASE, pixel_variant()):
        assert pickle.loads(pickle.dumps(variant)) == variant
    assert BASE.described()["unnorm_key"] == "bridge_orig"
    assert pixel_variant().described()["make"] == "PixelPolicy"
    assert pixel_variant().described() != replace(pixel_variant(), make=dict).described()


def test_image_steps_are_added_and_taken_away_as_asked(tmp_path: Path) -> None:
    checkpoint = str(shutil.copytree(shared_checkpoint(), tmp_path / "checkpoint"))
    processor = Path(checkpoint) / "preprocessor_config.json"
    text = processor.read_text()
    processor.write_text(text.rstrip().rstrip("}") + ', "image_options": {"center_crop": true}}')
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    as_stored = Variant("a", checkpoint, device="cpu").load()
    plain = Variant("b", checkpoint, device="cpu", center_crop=False, rotate_image_180=True).load()
    options = plain.processor.image_processor.options
    assert as_stored.processor.image_processor.options == ImageOptions(center_crop=True)
    assert options == ImageOptions(rotate_180=True)
    assert as_stored.view(image).shape == plain.view(image).shape
    assert not np.array_equal(as_stored.view(image), plain.view(image))
    turned = np.ascontiguousarray(image[::-1, ::-1])
    as_stored.processor.image_processor.options = ImageOptions()
    np.testing.assert_array_equal(plain.view(image), as_stored.view(turned))


def test_policies_of_one_function_with_other_arguments_are_others() -> None:
    """Records of both would have been mixed in one folder."""
    made = [MadeVariant("a", make=partial(dict, seed=seed)).described() for seed in (0, 1, 1)]
    assert made[0] != made[1] == made[2]
