"""Encoded bytes from anyone -> a prepared image: formats, bounds, decoders, processes that an image may kill."""
