"""A photo in, its vectors and keypoints out."""
