# The learner: torch, transformers, the status page.
#   docker build -f deploy/docker/learner.Dockerfile --build-arg VARIANT=cpu -t asympo-learner:0.1.0-cpu .
# VARIANT is cuda or cpu. Settings are given when it runs: --config FILE, environment, flags.
ARG VARIANT=cuda

FROM python:3.11.13-slim-bookworm AS packages
ARG VARIANT
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# One of the task packages has no wheel. Debian's own versions: pinning them breaks on every security fix.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/asympo
ENV PATH=/opt/asympo/bin:$PATH
COPY deploy/docker/learner-${VARIANT}.lock /build/requirements.lock
# The CPU build of torch is not in the public index; it comes before everything else, from where it is.
RUN set -eu; grep -F '+cpu' /build/requirements.lock >/build/torch-cpu.lock || true; \
    [ ! -s /build/torch-cpu.lock ] || \
    pip install --no-cache-dir --no-deps --extra-index-url "$TORCH_CPU_INDEX" -r /build/torch-cpu.lock; \
    pip install --no-cache-dir --no-deps -r /build/requirements.lock
COPY pyproject.toml /build/
COPY services /build/services
RUN pip install --no-cache-dir --no-deps --no-build-isolation /build

FROM python:3.11.13-slim-bookworm AS runtime-cpu
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends tini libgomp1 && rm -rf /var/lib/apt/lists/*

FROM python:3.11.13-slim-bookworm AS runtime-cuda
# Triton compiles the launchers of its kernels when it runs.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends tini gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM runtime-${VARIANT}
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin asympo
COPY --from=packages /opt/asympo /opt/asympo
ENV PATH=/opt/asympo/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
HEALTHCHECK --interval=20s --timeout=10s --start-period=30m --retries=6 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/livez', timeout=5)"]
# tini forwards the signal that drains, and reaps what the engine leaves behind.
ENTRYPOINT ["tini", "--", "asympo"]
CMD ["learner"]
