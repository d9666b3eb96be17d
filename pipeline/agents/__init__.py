"""Agents that simulate a scene: the log, constant velocity, the reference, the policy."""
