"""A run of all stages: the table of stages, its folder, the runner, the plan, the summary."""
