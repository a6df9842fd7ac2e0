"""`python -m openvla_ros.training.bench`: see `command.main`."""

import sys

from openvla_ros.training.bench.command import main

sys.exit(main())
