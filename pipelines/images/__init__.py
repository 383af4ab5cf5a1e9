"""Builds the images that the steps run in, checks them, and records them for the pipeline: `make images`."""
