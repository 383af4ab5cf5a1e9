"""A registered model at work: the MLflow pyfunc. Importing this package imports neither mlflow nor torch."""
