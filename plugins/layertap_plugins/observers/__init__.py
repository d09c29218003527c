"""The first-party observers."""
