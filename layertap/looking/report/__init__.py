"""`layertap report`: a page that shows an output, from its disk, without a network."""
