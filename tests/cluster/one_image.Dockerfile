# The learner's CPU image with what gateway and player need beside it, in the generators' versions: the whole chart without vLLM.
#   docker build -f tests/cluster/one_image.Dockerfile --build-arg LEARNER=asympo-learner:0.1.0-cpu -t one deploy/docker
ARG LEARNER
# hadolint ignore=DL3006
FROM ${LEARNER}
COPY generator-cpu.lock /tmp/
USER 0
RUN grep -E '^(httptools|jiter|openai|uvloop)==' /tmp/generator-cpu.lock >/tmp/requirements.lock && \
    pip install --no-cache-dir --no-deps -r /tmp/requirements.lock && rm /tmp/*.lock
USER 10001:10001
