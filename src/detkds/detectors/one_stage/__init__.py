"""One-stage detectors: a row of numbers for each anchor on the cells of a pyramid."""
