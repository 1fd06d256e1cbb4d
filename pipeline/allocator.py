"""How a CPU worker's allocator should treat freed memory."""

KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""Environment in which glibc keeps what is freed for the next step, instead of giving it back to the kernel and getting
it page by page again: 8% of a Gated PixelCNN's training step (docs/experiments.md). Read when a process starts."""
