"""Write the random weights that the training of `openvla-tiny` starts from.

python -m openvla_ros.sim.tiny start --seed 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from openvla_ros.sim.tiny.base import build_random_base


def main() -> None:
    """Write a checkpoint folder and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--seed", type=int, default=0, help="of every weight")
    arguments = parser.parse_args()
    print(build_random_base(arguments.out, arguments.seed))


if __name__ == "__main__":
    main()
