"""What all steps share: manifests, the durable work folder, atomic outputs, logs, progress.

`ava_core.runtime.step.run_step` is the step contract in one function; the other modules are its parts.
"""
