"""The KFP components: one folder per step with its container specification. They declare; they never compute."""
