"""What `openvla-ros replay` does besides: recorded actions without a policy, and the live node."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from openvla_ros.action_specs import load_action_spec, read_action_specs
from openvla_ros.cli.keys import local_folder
from openvla_ros.cli.output import needs, print_json
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_stats import read_norm_stats, resolve_unnorm_key, tuned_unnorm_key
from openvla_ros.types import ActionSpec

if TYPE_CHECKING:
    from openvla_ros.data.topics import TopicConfig
    from openvla_ros.evaluation.replay.run import ReplayOptions
    from openvla_ros.evaluation.replay.variants import Variant


def spec_of(unnorm_key: str, checkpoint: str) -> ActionSpec:
    """Return what the actions of a key mean; the key of a checkpoint that has one may be left out.

    Raises:
        ConfigurationError: Neither is given.
        CheckpointError, ActionStatsError: The checkpoint does not say it.
    """
    if not (unnorm_key or checkpoint):
        raise ConfigurationError(
            "--ground-truth needs --unnorm-key or --checkpoint: what the numbers of the recorded "
            "actions mean. `openvla-ros keys` lists the keys."
        )
    if not checkpoint:
        return load_action_spec(unnorm_key)
    folder = local_folder(checkpoint)
    key = unnorm_key or tuned_unnorm_key(folder)
    key = key or resolve_unnorm_key(read_norm_stats(folder), None)
    return load_action_spec(key, stored=read_action_specs(folder))


def run_ground_truth(
    sources: Sequence[Path],
    options: ReplayOptions,
    spec: ActionSpec,
    out: Path | None,
    *,
    as_json: bool,
) -> bool:
    """Send recorded actions through the motion stage, show what becomes of them; return whether
    every source could be read.

    Args:
        sources: Recordings.
        options: How they are read, and the parameters of the node.
        spec: What their actions mean.
        out: Folder that gets ground_truth.json, or None.
        as_json: Print JSON.

    Raises:
        OpenVLAError: A source cannot be read, or motion needs what nobody has said.
    """
    with needs("replay --ground-truth"):
        from openvla_ros.cli.replay_tables import show_findings
        from openvla_ros.control.motion import complete_spec
        from openvla_ros.evaluation.motion.ground_truth import replay_ground_truth
        from openvla_ros.evaluation.replay.folder import GROUND_TRUTH, plain, writing_file
        from openvla_ros.evaluation.replay.plan import require_apart
        from openvla_ros.evaluation.replay.run import open_sources

        if out is not None:
            require_apart(sources, out)
        node = options.node
        jobs, problems = open_sources(list(sources), options)
        spec = complete_spec(spec, node.action.overrides(), node.profile.expected())
        episodes = (job.episode for job in jobs)
        report = replay_ground_truth(episodes, spec, node.motion, node.gripper)
    content = plain(report.to_dict() | {"problems": [str(problem) for problem in problems]})
    if out is not None:
        with writing_file(out / GROUND_TRUTH) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(content)
        return not problems
    console = Console()
    console.print(
        f"{len(jobs)} episodes, {report.steps} steps, {report.clipped_steps} of them clipped"
    )
    show_findings(report.findings)
    for problem in problems:
        console.print(f"left out: {problem}", markup=False, soft_wrap=True)
    return not problems


def require_live(sources: Sequence[Path]) -> None:
    """Return when the sources are one bag, which can be played to a node, and ROS 2 is here.

    Raises:
        ConfigurationError: They are not.
        DependencyError: There is no ROS 2; after hours of evaluation is a bad time to learn it.
    """
    from openvla_ros.data.sources import BAG, source_kind

    if len(sources) != 1 or source_kind(sources[0]) != BAG:
        raise ConfigurationError(
            f"--live plays one rosbag2 to the node; {len(sources)} sources were given, or another "
            "kind. Give one bag, or leave --live out."
        )
    with needs("replay --live"):
        importlib.import_module("openvla_ros.ros.live_replay")


def run_live(
    bag: Path,
    variant: Variant,
    out: Path,
    topics: TopicConfig,
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    """Play a bag to the real node over DDS, after its offline replay; return what live.json holds.

    Args:
        bag: What was replayed.
        variant: The policy; its offline records lie in `out`.
        out: Folder of the offline replay.
        topics: Which topic of the bag is what.
        parameters: Of the node, beside those that load the policy.

    Raises:
        OpenVLAError: The node or the player fails.
    """
    from openvla_ros.evaluation.episode_record import read_record
    from openvla_ros.evaluation.replay.folder import RECORDS

    with needs("replay --live"):
        from openvla_ros.evaluation.report import write_report
        from openvla_ros.ros.frame_sources import BagFrames
        from openvla_ros.ros.live_replay import LiveOptions, run_live_replay

        found = BagFrames(bag, topics.image, topics.instruction.topic)
        live = LiveOptions(
            bag=bag,
            image_topic=found.image_topic,
            instruction_topic="" if topics.instruction.text else found.instruction_topic,
            instruction=topics.instruction.text,
            parameters={**parameters, **_node_parameters(variant)},
        )
        records = [
            read_record(path) for path in sorted((out / RECORDS / variant.name).glob("*.npz"))
        ]
        console = Console(stderr=True)
        result = run_live_replay(live, records, out, console.print)
        write_report(out)  # once more: now with the live figures
        return result.to_dict()


def _node_parameters(variant: Variant) -> dict[str, Any]:
    """Return the parameters of the node that load the policy of a variant."""
    names = ("checkpoint", "adapter", "unnorm_key", "quantization", "exactness", "device", "dtype")
    return {name: getattr(variant, name) for name in names}
