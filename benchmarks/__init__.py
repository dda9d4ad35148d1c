"""Side-by-side measurements against peers: `python -m benchmarks --help`.

They run from the root of the repository, and stand above everything else in it.
"""
