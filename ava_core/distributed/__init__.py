"""Processes that train together: their places, how they are started, and what they tell each other."""
