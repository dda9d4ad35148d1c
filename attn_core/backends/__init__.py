"""What computes a call or a `Problem`: plain torch over sorted pairs (csr), torch's own kernels
(sdpa, bmm, window), C++ (cpu) and Triton (triton)."""
