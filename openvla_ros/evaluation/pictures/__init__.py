"""Pictures and shapes of what a policy answered. Pillow alone, no ROS."""
