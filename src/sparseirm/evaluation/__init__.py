"""Measuring trained networks: never imported by training."""
