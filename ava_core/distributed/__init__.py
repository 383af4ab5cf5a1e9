"""Data-parallel processes: ranks, process group, collectives, detection of lost peers, and DeepSpeed's set-up."""
