"""Many photos into rows, overlapped and resumable."""
