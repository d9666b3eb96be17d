"""What stands behind a run: planners, claims, robustness, co-simulation. Nobody imports them."""
