"""The first-party engines."""
