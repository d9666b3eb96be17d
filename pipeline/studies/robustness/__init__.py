"""What agents are worth when their inputs are wrong, and when they were trained elsewhere."""
