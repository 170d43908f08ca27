"""An engine without a model: a timing model instead of compute, and a hash chain over KV content instead of logits."""
