"""The image that every component runs in: named here and nowhere else.

`python -m pipelines.compile --image NAME` puts another one into the compiled pipeline; `docker/Dockerfile` builds it.
"""

IMAGE = "ava-moe:cpu"
