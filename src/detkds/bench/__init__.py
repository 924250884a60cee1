"""Comparing search algorithms in seconds: measured tables, synthetic landscapes, searches in memory."""
