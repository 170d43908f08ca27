"""Readers of public trace formats, each to the same request type."""
