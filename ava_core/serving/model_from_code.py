"""The script that MLflow keeps with a registered model and runs when it loads it; so nothing is ever unpickled."""

from mlflow.models import set_model

from ava_core.serving.pyfunc import TextModel

set_model(TextModel())
