"""kNN-LM (arXiv 1911.00172): what followed the nearest contexts of a datastore, mixed with a model's next token."""
