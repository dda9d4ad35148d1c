"""Programs to run and to copy from; each runs as `python -m examples.<name>`."""
