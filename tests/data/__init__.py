"""Recorded and generated data."""
