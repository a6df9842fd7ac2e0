"""From action to motion, in numpy alone: no torch, no ROS, no files; time is an argument."""
