"""Loading a model, as trained or as quantised, and letting it continue prompts."""
