"""Self-play: experience, PPO, the frozen anchor, and the training loop."""
