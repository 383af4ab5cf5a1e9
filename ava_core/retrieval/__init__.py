"""Retrieval: passages of documents, an index of them, and what is found in it."""
