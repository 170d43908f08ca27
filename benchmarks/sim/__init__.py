"""The simulator's figures: how fast it is, how near to measurements, and what placement policies come to."""
