"""The component of `ava record-outcome`, the exit handler of the pipeline."""
