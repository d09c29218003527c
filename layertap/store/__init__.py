"""The output folder: commits, locks and durable files."""
