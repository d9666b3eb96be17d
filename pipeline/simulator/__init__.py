"""The batched simulator: worlds, steps, events, observations, rewards, Gymnasium interfaces. It knows no model."""
