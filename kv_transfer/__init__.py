"""What a KV block is called, how it is laid out, how it moves, and who has it (the Redis schema)."""
