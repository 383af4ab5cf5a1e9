"""The KFP components: the container of each step, made from the step table. They declare; they never compute."""
