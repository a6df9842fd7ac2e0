"""A simulated cell in-process: camera out, twist and gripper in. No ROS in here."""
