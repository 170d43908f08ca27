"""What is sent: recorded traffic and generators, all as the same request type, and the prompts they expand to."""
