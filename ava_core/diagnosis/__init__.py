"""What may be wrong around Ava before anything runs: `ava doctor`. Nothing heavy is imported, torch least of all."""

from ava_core.diagnosis.examination import Place, examine
from ava_core.diagnosis.finding import Finding

__all__ = ["Finding", "Place", "examine"]
