"""The component of `ava gate`."""
