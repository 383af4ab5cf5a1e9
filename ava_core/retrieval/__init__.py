"""Retrieval: text becomes an index of passages, which is searched by words and by meaning."""
