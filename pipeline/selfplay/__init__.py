"""Self-play: many worlds as batched tensors, what agents see and earn, and PPO anchored to the reference."""
