"""Scores of rollouts: realism, diagnosis, statistics, tables."""
