"""A photo in, its vectors out: settings, views, pooling, whitening, an encoder as files."""
