"""Programs that measure: speed and memory, and how well a run is protected."""
