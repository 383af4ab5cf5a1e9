"""`ava sweep`: many trials of one configuration, each an ordinary run of the steps, chosen and compared.

`space` is the file that says what is varied, `checks` holds it against the configuration, `study` is the memory of a
sweep (Optuna's storage), `trial` runs one trial, `sweep` all of them; `results` and `report` are what is seen of it.
"""
