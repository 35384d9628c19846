# Two images from one file: `api` has no torch, `worker` trains.
#   docker build --target api -t tether-api .
#   docker build --target worker -t tether-worker .                       (CUDA build of torch)
#   docker build --target worker --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t tether-worker .

FROM python:3.12-slim AS base
RUN useradd --create-home --uid 10001 tether && install -d -o tether /data
WORKDIR /srv/tether
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 TETHER_HOME=/data HF_HUB_OFFLINE=1
COPY constraints.txt pyproject.toml README.md LICENSE ./

FROM base AS api
COPY app app
COPY migrations migrations
RUN pip install --constraint constraints.txt --editable ".[charts]"
USER tether
EXPOSE 8000
CMD ["tether", "api", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
ARG TORCH_INDEX=
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} torch
COPY app app
COPY worker worker
COPY migrations migrations
RUN pip install --constraint constraints.txt --editable ".[worker]"
USER tether
ENV CUBLAS_WORKSPACE_CONFIG=:4096:8
CMD ["tether", "worker", "--queue", "gpu"]
