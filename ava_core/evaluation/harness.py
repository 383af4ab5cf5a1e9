"""EleutherAI's lm-evaluation-harness, with our architecture known to it.

    python -m ava_core.evaluation.harness --model hf --model_args pretrained=outputs/model --tasks arc_easy

Same command line as `lm_eval`, which finds models through Transformers' Auto classes and has no option to import what
registers others there. Needs `lm-eval` and `accelerate` (in `ava-moe[dev]`).
"""

from __future__ import annotations

import ava_core.models  # noqa: F401  registers the architecture with the Auto classes


def main() -> None:
    """Run `lm_eval` with this process's arguments."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
