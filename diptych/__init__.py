"""The library every Diptych process stands on: messages, errors, configuration, membership, telemetry, the engine."""

__version__ = "0.1.0"
