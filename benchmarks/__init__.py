"""Measurements, each kept with its command, machine and commit in results/."""
