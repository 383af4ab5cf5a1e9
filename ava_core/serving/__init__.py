"""Serving: the engine, OpenAI's HTTP interface, MLflow's pyfunc. Importing it imports neither mlflow nor torch."""
