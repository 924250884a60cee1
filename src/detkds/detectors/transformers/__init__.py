"""Detectors of the transformers library, through one adapter."""
