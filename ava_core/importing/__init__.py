"""Models of other makers become model folders of ours: `ava import`."""
