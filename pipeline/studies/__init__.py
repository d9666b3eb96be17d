"""What stands behind a run: planners, claims, robustness, co-simulation. No other room imports them."""
