"""A prefill worker: runs prompts and pushes their KV into the decode worker that holds blocks for it."""
