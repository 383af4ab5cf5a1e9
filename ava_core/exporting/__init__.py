"""A trained model as other tools know it: architectures of Transformers, and GGUF for llama.cpp."""
