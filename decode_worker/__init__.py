"""A decode worker: reserves blocks, receives KV into them, and streams the tokens that follow."""
