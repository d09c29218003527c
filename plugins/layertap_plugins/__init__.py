"""The first-party plugins: what a stranger could have written, through the same door."""
