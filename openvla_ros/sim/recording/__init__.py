"""The scripted expert recorded as rosbag2 episodes: what a lab has of a teleoperated arm."""
