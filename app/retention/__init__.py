"""How long things are kept: pruning of old records, legal holds, and datasets that are erased."""
