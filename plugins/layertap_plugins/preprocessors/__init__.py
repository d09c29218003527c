"""The first-party preprocessors."""
