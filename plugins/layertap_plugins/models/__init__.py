"""The first-party models."""
