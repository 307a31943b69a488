"""The kernels for GPUs, in Triton, a file each. `kernels/gpu.py` puts them behind the `Kernels` interface.

A Triton kernel is written for one *program*: a small team of threads that owns a tile of the result. `tl.program_id`
says which; loads and stores name whole tiles of addresses, with a mask where a tile reaches over the edge. A function
without a leading underscore launches the programs of its kernel on a grid, and never waits for the GPU.

With TRITON_INTERPRET=1 all of them run on a CPU, in numpy: slow, exact, and how the tests try them anywhere.
"""
