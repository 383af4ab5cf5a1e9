"""The script that MLflow keeps with a registered model and runs when it loads it; so nothing is ever unpickled."""

import sys
from pathlib import Path

from mlflow.models import set_model

CODE = Path(__file__).with_name("code") / "ava_core.zip"
if CODE.is_file():  # not there yet while the model is being registered
    sys.path.insert(0, str(CODE))

from ava_core.serving.pyfunc import TextModel  # noqa: E402

set_model(TextModel())
