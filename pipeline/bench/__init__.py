"""Benchmarks: ``make bench`` measures speed and memory."""
