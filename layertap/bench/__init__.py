"""How fast a run is, how fast it could be at most, and what would make it faster."""
