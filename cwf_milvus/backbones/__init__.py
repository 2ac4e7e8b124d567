"""Networks seen as Eq. 1 sees them."""
