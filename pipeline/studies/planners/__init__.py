"""Planner evaluation: planners drive the AV, and logs, references or policies drive everybody else."""
