"""What all steps share: keys, manifests, the durable work folder, atomic outputs, logs.

`ava_core.runtime.step.run_step` is the step contract in one function; the other modules are its parts.
"""
