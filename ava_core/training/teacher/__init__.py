"""Learning from a teacher: its predictions are computed once, kept in the work folder, and read with each batch."""
