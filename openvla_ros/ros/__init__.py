"""The only room that imports rclpy and message types: nodes, and the tools around them."""
