"""A query to ranked hits: one call to the gallery, then stages."""
