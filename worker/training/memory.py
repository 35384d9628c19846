"""Noticing that memory has run out, whoever says so: Python, torch on either device, or the operating system."""

import errno

_PHRASES = ("out of memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")
"""Of RuntimeErrors: torch.OutOfMemoryError, torch's allocator for the CPU, and the libraries for CUDA."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Say whether an error, or the one that it was raised for, is that memory has run out."""
    seen: set[BaseException] = set()
    while error is not None and error not in seen:
        # An error can be the cause of itself.
        seen.add(error)
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES):
            return True
        error = error.__cause__
    return False
