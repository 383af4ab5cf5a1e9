"""The component of `ava train`."""
