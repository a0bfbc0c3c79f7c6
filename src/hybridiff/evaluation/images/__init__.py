"""`hybridiff evaluate`: images of several strategies, and what is measured of them."""
