"""Phase-specific experiments: one file says what to vary; each cell of it is measured, or simulated, and reported."""
