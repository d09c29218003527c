"""From a source to batches of prepared images."""
