"""Models side by side: which differences between their figures a text can show, and what else differs."""
