"""The first-party reducers."""
