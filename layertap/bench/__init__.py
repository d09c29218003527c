"""How fast a run is, how fast it could be at best, and what would make it faster."""
