"""A run, from its first image to its report."""
