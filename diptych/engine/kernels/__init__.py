"""What the engine computes in C++ where it can: compiled here, bound here, and never required."""
