"""What the viewer can show: thousands of scenarios and their rollouts, found once and read one at a time."""
