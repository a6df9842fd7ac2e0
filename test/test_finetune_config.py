"""Fine-tuning configurations: what a file may say, and what the packaged one says."""

from __future__ import annotations

import itertools
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from openvla_ros.errors import ConfigurationError
from openvla_ros.training import config_file
from openvla_ros.training.config import (
    DataConfig,
    FinetuneConfig,
    OptimizationConfig,
    SourceConfig,
    StrategyConfig,
)
from openvla_ros.training.config_file import (
    config_from,
    parse_overrides,
    plain_config,
    read_finetune_config,
)

PACKAGED = Path(__file__).resolve().parents[1] / "config" / "finetune.yaml"
MINIMAL: dict[str, Any] = {"base": "b", "data": {"sources": [{"path": "p", "name": "n"}]}}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_packaged_file_is_what_the_dataclasses_say() -> None:
    assert PACKAGED.read_text(encoding="utf-8") == config_file.yaml_text(), (
        "config/finetune.yaml is not current: "
        "python -m openvla_ros.training.config_file > config/finetune.yaml"
    )


def test_packaged_file_lists_exactly_the_fields_and_their_defaults() -> None:
    source = SourceConfig(path="recordings/demo", name="my_robot")
    expected = FinetuneConfig(base="openvla/openvla-7b", data=DataConfig(sources=(source,)))
    content = yaml.safe_load(PACKAGED.read_text(encoding="utf-8"))
    assert content == plain_config(expected)
    assert read_finetune_config(PACKAGED) == expected


def test_every_key_of_the_packaged_file_has_a_comment() -> None:
    lines = PACKAGED.read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if ":" in line and not line.lstrip(" -").startswith("#")
        if not before.lstrip(" -").startswith("#")
    ]
    assert not bare
    assert max(map(len, lines)) <= 100


def test_header_names_commands_that_exist() -> None:
    text = PACKAGED.read_text(encoding="utf-8").partition("\n\n")[0]
    for command in ("openvla-ros finetune", "torchrun", "--dry-run", "openvla-ros replay"):
        assert command in text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.sorces", [], r"no key data\.sorces \(did you mean data\.sources\?\)"),
        ("optimization.batchsize", 4, r"did you mean optimization\.batch_size\?"),
        ("data.sources.0.nam", "x", r"no key data\.sources\.0\.nam \(did you mean"),
        ("zzz", 1, r"no key zzz; config/finetune.yaml lists"),
        ("optimization.batch_size", "four", r"optimization\.batch_size is 'four'; .* whole number"),
        ("optimization.batch_size", 4.5, r"must be a whole number"),
        ("optimization.batch_size", True, r"must be a whole number"),
        ("optimization.learning_rate", "fast", r"learning_rate is 'fast'; it must be a number"),
        ("optimization.learning_rate", -1, r"must be greater than 0"),
        ("run.tensorboard", "yes", r"must be true or false"),
        ("run.out", 3, r"run\.out is 3; it must be a text"),
        ("strategy", "lora", r"strategy is 'lora'; it must be a section"),
        ("strategy.lora_targets", "q_proj", r"must be a list"),
        ("strategy.name", "lorra", r"use one of full, last_layer"),
        ("optimization.auxiliary_losses", [1], r"must be a section"),
    ],
)
def test_mistakes_are_errors_that_name_the_key(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        read_finetune_config(PACKAGED, {key: value})


def test_missing_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"run\.yaml: the key base is missing"):
        read_finetune_config(write(tmp_path, "data: {mixture: bridge, mixture_folder: x}\n"))
    with pytest.raises(ConfigurationError, match=r"key data\.sources\.0\.name is missing"):
        read_finetune_config(write(tmp_path, "base: b\ndata: {sources: [{path: x}]}\n"))


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "just words\n"])
def test_a_file_that_is_no_configuration_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"run\.yaml"):
        read_finetune_config(write(tmp_path, text))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_finetune_config(tmp_path / "absent.yaml")


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads 5e-4 as a text."""
    text = yaml.safe_dump(MINIMAL) + "optimization: {learning_rate: 5e-4}\n"
    assert read_finetune_config(write(tmp_path, text)).learning_rate == 5e-4


def test_overrides_win_and_reach_into_lists_and_missing_sections(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(MINIMAL))
    texts = ["data.sources.0.path=there", "strategy.name=qlora", "strategy.lora_targets=[q_proj]"]
    texts += ["optimization.auxiliary_losses.depth=0.5", "run.seed=3", "data.sources.0.rate_hz=5"]
    config = read_finetune_config(path, parse_overrides(texts))
    assert config.data.sources == (SourceConfig(path="there", name="n", rate_hz=5.0),)
    assert config.strategy == StrategyConfig(name="qlora", lora_targets=("q_proj",))
    assert config.optimization == OptimizationConfig(auxiliary_losses={"depth": 0.5})
    assert config.run.seed == 3
    with pytest.raises(ConfigurationError, match="nothing that '7' could be part of"):
        read_finetune_config(path, {"data.sources.7.path": "x"})


@pytest.mark.parametrize("text", ["run.seed", "=3", "run.seed=["])
def test_overrides_of_another_form_are_errors(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--set"):
        parse_overrides([text])


def test_a_configuration_survives_being_written_and_read() -> None:
    config = config_from(MINIMAL)
    assert config_from(plain_config(config)) == config
    other = config_from(MINIMAL | {"optimization": {"auxiliary_losses": {"a": 0.25}}})
    assert config_from(plain_config(other)) == other != config


def test_every_field_has_a_meaning() -> None:
    concerns = [FinetuneConfig, SourceConfig]
    concerns += [type(f) for f in vars(config_from(MINIMAL)).values() if is_dataclass(f)]
    for concern in concerns:
        meanings = config_file._meanings(concern)
        assert set(meanings) == {f.name for f in fields(concern)}, concern
        assert all(meanings.values()), concern
