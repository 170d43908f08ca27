"""What moving KV costs: against raw NIXL and memcpy, and in the time to first token of a real cluster."""
