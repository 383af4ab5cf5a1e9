"""The component of `ava register`."""
