"""Trainings as tasks: what is trained, who trains it, and where results are kept."""
