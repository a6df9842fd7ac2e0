"""What became of the frames when the bag was played to the real node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openvla_ros.evaluation.report.page import Section, paragraph, side_by_side, table_html
from openvla_ros.evaluation.report.quantities import quantity
from openvla_ros.evaluation.report.results import Results

_ABOUT = (
    "The bag was played in real time to openvla_node in dry run. An age is the time from the stamp "
    "of the image to the complete answer. DRY_RUN would have moved the arm; other reasons would "
    "not. The states are those that the node has published, with the number of messages."
)


def live_section(results: Results) -> Section:
    """Return the live replay beside the offline one; only for results that have one."""
    live = results.live
    assert live is not None, "the caller has looked"
    frames = table_html(
        ["Frames", ""],
        [
            ["in the bag", f"{live['images_in_bag']:,}"],
            ["received by the node", f"{live['images_received']:,}"],
            ["answered", f"{live['answered']:,}"],
            ["share of the bag answered", quantity(live["answered_share"], "%")],
            ["answered offline as well", f"{live['compared']:,}"],
            ["of those, with the same ids and numbers", f"{live['equal']:,}"],
        ],
        "What became of the frames",
    )
    times = table_html(
        ["", *live["age_s"]],
        [
            ["age of the answer", *(quantity(1000 * s, "ms") for s in live["age_s"].values())],
            ["policy alone", *(quantity(ms, "ms") for ms in live["inference_ms"].values())],
        ],
        "Time until the answer",
    )
    said = side_by_side(
        [
            table_html(["Answer", "frames"], _counts(live["drop_reasons"]), "Would it have moved?"),
            table_html(["State", "messages"], _counts(live["states"]), "What the node said"),
        ]
    )
    return Section("Live over DDS", paragraph(_ABOUT) + side_by_side([frames, times]) + said)


def _counts(counts: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [[name, f"{number:,}"] for name, number in ordered]
