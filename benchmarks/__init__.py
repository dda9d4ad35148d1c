"""Side-by-side measurements against peers: `python -m benchmarks --help`.

They run from the root of the repository, and stand above everything else in it.
"""

import os

import torch

if not torch.cuda.is_available():
    # What --tiny needs on the CPU; Triton reads it when it is imported, which torch may do early
    os.environ.setdefault("TRITON_INTERPRET", "1")
