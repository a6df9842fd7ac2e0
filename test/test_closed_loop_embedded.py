"""The policy that comes with the package does what it is told: pictures in, physics, pictures out.

The full count, 100 episodes over topics, is in test_closed_loop_ros.py.
"""

from __future__ import annotations

import sim_cells

from openvla_ros.sim.closed_loop.drivers import policy_driver
from openvla_ros.sim.closed_loop.evaluation import Trial, run_trial

EPISODES, FEWEST = 10, 6


def test_the_embedded_policy_reaches_in_at_least_6_of_10() -> None:
    sim_cells.require_pictures()
    driver = policy_driver(sim_cells.embedded_policy())
    results = run_trial(sim_cells.shared_cell(), driver, Trial(episodes=EPISODES))
    failed = [result.seed for result in results if not result.succeeded]
    assert len(failed) <= EPISODES - FEWEST, f"seeds {failed}"
