"""The first-party sinks."""
