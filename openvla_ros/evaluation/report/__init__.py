"""One self-contained HTML file about what a policy answered to recorded episodes."""

from openvla_ros.evaluation.report.replay_report import write_report

__all__ = ["write_report"]
