"""The speed of the loader is printed for each number of workers, from a configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from training_recordings import write_recordings

from openvla_ros.training.loader_speed import main


def test_figures_of_a_configuration_are_printed(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_recordings(tmp_path / "demos", (4, 3))
    content = {
        "base": str(tiny_checkpoint),
        "data": {
            "sources": [{"path": str(folder), "name": "demos"}],
            "cache_folder": str(tmp_path / "cache"),
        },
        "optimization": {"batch_size": 2},
    }
    path = tmp_path / "finetune.yaml"
    path.write_text(yaml.safe_dump(content))
    main(["--config", str(path), "--workers", "0", "1", "--batches", "2", "--json"])
    found = json.loads(capsys.readouterr().out)["samples_per_s"]
    assert sorted(found) == ["0", "1"] and all(speed > 0 for speed in found.values())
    main(["--config", str(path), "--workers", "0", "--batches", "1", "--set", "run.seed=1"])
    assert "workers  samples/s" in capsys.readouterr().out
