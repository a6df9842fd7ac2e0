"""Write the checkpoint that a lesson of `openvla-tiny` starts from.

    python -m openvla_ros.sim.tiny start --seed 0                          random weights
    python -m openvla_ros.sim.tiny lesson1 --from-run runs/reach --base start

The second takes the newest weights of a run that was stopped before its end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from openvla_ros.sim.tiny.base import build_random_base
from openvla_ros.sim.tiny.stopped_run import checkpoint_of_run


def main() -> None:
    """Write a checkpoint folder and print its path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--seed", type=int, default=0, help="of every random weight")
    parser.add_argument("--from-run", type=Path, help="`run.out` of a run")
    parser.add_argument("--base", type=Path, help="what that run started from")
    given = parser.parse_args()
    if given.from_run is None:
        print(build_random_base(given.out, given.seed))
    elif given.base is None:
        parser.error("--from-run needs --base")
    else:
        print(checkpoint_of_run(given.from_run, given.base, given.out))


if __name__ == "__main__":
    main()
