# Targets: cpu (the default), cuda, jobs and train; deploy/README.md says what each is for.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS base


FROM base AS builder
# pip installs from outside, so that the environment holds no copy of it.
ENV PIP_CACHE_DIR=/pip-cache
RUN python -m venv --without-pip /venv
WORKDIR /source


FROM builder AS package
# .dockerignore says what this is.
COPY . .
RUN --mount=type=cache,target=/pip-cache --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip --python /venv install --no-deps .


# The requirements are a layer of their own, which a change of the sources leaves as it is: from what names them, and an
# empty package, over which the whole one is laid.
FROM builder AS requirements
COPY pyproject.toml constraints.txt ./
COPY client/vaeserve/__init__.py client/vaeserve/
# Named in pyproject.toml; the empty package has no need of what they say.
RUN touch README.md LICENSE


FROM requirements AS cpu-requirements
RUN --mount=type=cache,target=/pip-cache --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip --python /venv install --constraint constraints.txt '.[serve,otel]'


FROM requirements AS cuda-requirements
RUN --mount=type=cache,target=/pip-cache --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip --python /venv install --constraint constraints.txt '.[cuda,otel]'


FROM requirements AS jobs-requirements
RUN --mount=type=cache,target=/pip-cache --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip --python /venv install --constraint constraints.txt '.[jobs]'


FROM requirements AS train-requirements
# PyTorch's index of CPU builds makes this image several GB smaller; pip's own choice runs on CUDA too.
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/pip-cache --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip --python /venv install --constraint constraints.txt '.[export]'


FROM base AS command
ARG BASE
# The revision would make every layer after it anew: give it by --label.
LABEL org.opencontainers.image.title="vaeserve" \
      org.opencontainers.image.description="Anomaly detection in production with variational autoencoders" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.base.name="${BASE}"
ENV PATH="/venv/bin:${PATH}" \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    GRPC_VERBOSITY=ERROR
# A number, because Kubernetes' runAsNonRoot can't tell whether a name is root's.
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["vaeserve"]
CMD ["--help"]


FROM command AS train
COPY --from=train-requirements /venv /venv
COPY --from=package /venv /venv


FROM command AS jobs
COPY --from=jobs-requirements /venv /venv
COPY --from=package /venv /venv


FROM command AS service
ENV VAESERVE_REPOSITORY_PATH=/models
EXPOSE 8001 8002
# The client gives up before the runtime does, so that a hung service has a message.
HEALTHCHECK --start-period=60s --interval=10s --timeout=10s --retries=3 \
    CMD ["vaeserve", "health", "localhost:8001", "--timeout", "5"]
CMD ["serve"]


FROM service AS cuda
COPY --from=cuda-requirements /venv /venv
COPY --from=package /venv /venv


FROM service AS cpu
COPY --from=cpu-requirements /venv /venv
COPY --from=package /venv /venv
