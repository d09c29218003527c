"""The hooks that keep what layers return."""
