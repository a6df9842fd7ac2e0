"""`python -m openvla_ros.engine.bench`: see `main`."""

import sys

from openvla_ros.engine.bench.command import main

sys.exit(main())
