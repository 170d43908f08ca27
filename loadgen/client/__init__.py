"""The measuring client: sends planned requests to an OpenAI-compatible server over HTTP and records what came back.

Knows nothing of Diptych beyond what any server of this kind promises, and imports nothing of it.
"""
