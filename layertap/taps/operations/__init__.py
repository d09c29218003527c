"""What a layer computes between the layers inside it."""
