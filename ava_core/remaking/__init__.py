"""Models made of finished ones without a training: a mean of several (`ava average`), one with fewer experts (`ava
prune`)."""
