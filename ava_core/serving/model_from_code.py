"""The script that MLflow keeps with a registered model and runs when it loads it; so nothing is ever unpickled."""

import sys
from pathlib import Path

from mlflow.models import set_model

CODE = Path(__file__).with_name("code") / "ava_core.zip"
if CODE.is_file():  # not there yet while the model is being registered
    # Where Ava is installed, a line that Python runs at its start has imported so much of it. It gives way to the code
    # that this version was registered with, unless the program has begun to use it.
    present = {name for name in sys.modules if name.partition(".")[0] == "ava_core"}
    if present <= {"ava_core", "ava_core.auto_classes"}:
        for name in present:
            del sys.modules[name]
    sys.path.insert(0, str(CODE))

from ava_core.serving.pyfunc import TextModel  # noqa: E402

set_model(TextModel())
