"""Reading outputs back, and converting them."""
