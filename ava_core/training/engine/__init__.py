"""The DeepSpeed engine: what a step computes, in which precision, partitioned over processes or not."""
