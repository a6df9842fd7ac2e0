"""`python -m openvla_ros.cli`."""

import sys

from openvla_ros.cli import main

sys.exit(main())
