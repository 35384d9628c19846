"""Many small jobs while everything around them fails again and again: `python -m tests.soak`, see `__main__`."""
