"""The component of `ava quantize`."""
