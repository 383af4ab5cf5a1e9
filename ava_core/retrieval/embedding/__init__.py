"""Embeddings of passages and questions, by name."""
