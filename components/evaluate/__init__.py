"""The component of `ava evaluate`."""
