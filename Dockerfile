# Two images from one file: `api` runs API, reconciler and migrations and has no torch; `worker` trains.
#   docker build --target api -t tether-api .
#   docker build --target worker -t tether-worker .                       (CUDA build of torch)
#   docker build --target worker --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t tether-worker .

FROM python:3.12-slim AS base
# A number, so that an orchestrator can see that it is not root.
RUN useradd --create-home --uid 10001 tether && install -d -o tether -m 700 /data
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore TETHER_HOME=/data HF_HUB_OFFLINE=1
# `python -m` looks in the current folder first; this one is empty, and the user of the image cannot write it.
WORKDIR /srv/tether
COPY constraints.txt pyproject.toml README.md LICENSE /src/

FROM base AS api
COPY app /src/app
COPY migrations /src/migrations
RUN pip install --constraint /src/constraints.txt "/src[charts,s3]"
USER 10001
EXPOSE 8000
CMD ["tether", "api", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
ARG TORCH_INDEX=
# Torch is by far the largest part and changes least, so it has a layer of its own below the code.
RUN pip install --constraint /src/constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} torch
COPY app /src/app
COPY worker /src/worker
COPY migrations /src/migrations
RUN pip install --constraint /src/constraints.txt "/src[worker,s3]"
USER 10001
CMD ["tether", "worker", "--queue", "gpu"]
