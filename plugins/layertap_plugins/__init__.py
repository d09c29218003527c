"""The first-party plugins, which use only the public interface that third-party plugins use."""
