"""Looking at features: search, pairs, units, similarity. No run imports any of it."""
