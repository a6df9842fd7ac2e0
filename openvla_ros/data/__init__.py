"""Recordings: what a robot saw and did, read and written without ROS."""
