"""Two-stage detectors: proposals, and what the regions they name hold."""
