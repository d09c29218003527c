"""Encoded bytes -> an image, whoever made them: formats, bounds, decoders, processes that a hostile one may kill."""
