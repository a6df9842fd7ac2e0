"""OpenVLA on a real arm: camera and instruction in, Cartesian twist and gripper command out.

Importing this package is cheap: it pulls in neither torch nor rclpy. What a user calls lives in
`openvla_ros.policy` (Python) and `openvla_ros.ros` (nodes).
"""

from pkgutil import extend_path

# The generated interfaces (openvla_ros.msg) live in the colcon install tree, these sources in the
# checkout. extend_path makes the two directories one package, so tests and editable installs see
# both.
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
