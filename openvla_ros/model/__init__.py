"""The network as Hugging Face stores it: configuration, towers, tokens, statistics. No ROS here."""
