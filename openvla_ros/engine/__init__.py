"""The same network made fast: static buffers, captured graphs, fewer passes. No ROS here."""
