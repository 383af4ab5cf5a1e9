"""The KFP graph and what runs it: compiled, on this host, or on a cluster."""
