"""Processes that train together: their ranks, what they exchange, and how a lost one is noticed."""
