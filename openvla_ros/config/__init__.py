"""Every parameter of the node - name, type, default, unit, range, meaning - once, here.

One frozen dataclass per concern (policy.py, motion.py). The node's declarations,
`config/openvla.yaml` and the README table are all made from their fields:
`python -m openvla_ros.config.files yaml` (or `markdown`) prints the last two.

This file knows no ROS: names are what ROS calls them, values are plain Python.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from openvla_ros.config.motion import GripperConfig, MotionConfig, ProfileConfig
from openvla_ros.config.operation import OperationConfig
from openvla_ros.config.parameter import Parameter
from openvla_ros.config.policy import ActionConfig, InputConfig, ModelConfig, TimingConfig
from openvla_ros.config.split import SplitConfig
from openvla_ros.config.views import ViewConfig
from openvla_ros.errors import ConfigurationError

_CONCERNS = (
    ModelConfig,
    InputConfig,
    TimingConfig,
    ActionConfig,
    ProfileConfig,
    MotionConfig,
    OperationConfig,
    GripperConfig,
    SplitConfig,
    ViewConfig,
)
_Concern = TypeVar("_Concern")


def parameters() -> tuple[Parameter, ...]:
    """Every parameter of the node, in the order in which users meet them."""
    return tuple(f.metadata["parameter"] for concern in _CONCERNS for f in fields(concern))


PARAMETERS: Mapping[str, Parameter] = {p.name: p for p in parameters()}


@dataclass(frozen=True)
class NodeConfig:
    """All parameters of the node, checked.

    Raises (from `from_values`):
        ConfigurationError: An unknown name, a bad value, or values that contradict each other.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    timing: TimingConfig = field(default_factory=TimingConfig)
    action: ActionConfig = field(default_factory=ActionConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    operation: OperationConfig = field(default_factory=OperationConfig)
    gripper: GripperConfig = field(default_factory=GripperConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    views: ViewConfig = field(default_factory=ViewConfig)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> NodeConfig:
        """Return the configuration for parameter values by name; missing ones are the defaults."""
        refuse_unknown(values)
        config = cls(
            model=_fill(ModelConfig, values),
            inputs=_fill(InputConfig, values),
            timing=_fill(TimingConfig, values),
            action=_fill(ActionConfig, values),
            profile=_fill(ProfileConfig, values),
            motion=_fill(MotionConfig, values),
            operation=_fill(OperationConfig, values),
            gripper=_fill(GripperConfig, values),
            split=_fill(SplitConfig, values),
            views=_fill(ViewConfig, values),
        )
        config._check_combinations()
        return config

    def _check_combinations(self) -> None:
        if self.motion.motion_enabled and not self.motion.base_frame:
            raise ConfigurationError(
                "motion_enabled is true and base_frame is empty: set base_frame to the frame in "
                "which the robot's controller expects the twist, e.g. fr3_link0."
            )
        if self.gripper.open_position <= self.gripper.closed_position:
            raise ConfigurationError(
                f"gripper.open_position ({self.gripper.open_position} m) must be larger than "
                f"gripper.closed_position ({self.gripper.closed_position} m)."
            )
        self._check_workspace()
        self._check_ee_pose()
        if bool(self.inputs.image_roi[2]) != bool(self.inputs.image_roi[3]):
            raise ConfigurationError(
                f"image_roi is {list(self.inputs.image_roi)}: width and height must both be "
                "positive, or both 0 for the whole image."
            )

    def _check_workspace(self) -> None:
        motion, margin = self.motion, self.motion.workspace_margin
        if not motion.has_workspace:
            return
        sides = zip(motion.workspace_min, motion.workspace_max, strict=True)
        if not all(high - low > 2.0 * margin for low, high in sides):
            raise ConfigurationError(
                f"limits.workspace_max {list(motion.workspace_max)} must exceed "
                f"limits.workspace_min {list(motion.workspace_min)} by more than two "
                f"workspace_margin ({margin} m each) along every axis; equal corners switch the "
                "box off."
            )

    def _check_ee_pose(self) -> None:
        if self.operation.ee_pose_source != "tf":
            return
        for name, frame in (
            ("base_frame", self.motion.base_frame),
            ("ee_frame", self.operation.ee_frame),
        ):
            if not frame:
                raise ConfigurationError(
                    f"ee_pose_source is 'tf' and {name} is empty: set base_frame and ee_frame to "
                    "the two frames, e.g. fr3_link0 and fr3_hand_tcp."
                )


def _fill(concern: type[_Concern], values: Mapping[str, Any]) -> _Concern:
    given = {}
    for f in fields(cast(Any, concern)):
        parameter: Parameter = f.metadata["parameter"]
        if parameter.name in values:
            given[f.name] = parameter.check(values[parameter.name])
    return concern(**given)


def refuse_unknown(names: Iterable[str]) -> None:
    """Return when every name is a parameter of the node.

    Raises:
        ConfigurationError: Some are not; the text has them all, each with the nearest known name.
    """
    unknown = []
    for name in names:
        if name not in PARAMETERS:
            near = difflib.get_close_matches(name, PARAMETERS, n=1)
            unknown.append(f"'{name}' (did you mean '{near[0]}'?)" if near else f"'{name}'")
    if unknown:
        raise ConfigurationError(
            f"openvla_node has no parameter {', '.join(unknown)}: leave out what this version does "
            "not know; config/openvla.yaml lists the rest."
        )
