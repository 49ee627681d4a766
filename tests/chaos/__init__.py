"""Kills at random, scaled down to what a test run may take."""
