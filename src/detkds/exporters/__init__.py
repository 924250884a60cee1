"""Detectors in forms that work without this package."""
