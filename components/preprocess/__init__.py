"""The component of `ava preprocess`."""
