"""Pages in a real browser: `make browser` runs these tests, with Chromium and without a network."""
