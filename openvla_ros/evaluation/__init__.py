"""Pictures and numbers about what a policy answered. No ROS in here."""
