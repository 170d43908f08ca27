"""Clusters in virtual time: the real cores of router, workers and transfers under a clock that jumps."""
