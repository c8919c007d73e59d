FROM python:3.11-slim-bookworm AS base


FROM base AS builder
# pip installs from outside, so that the environment holds no copy of it.
RUN python -m venv --without-pip /venv
WORKDIR /source
# .dockerignore says what this is.
COPY . .
RUN --mount=type=cache,target=/pip-cache \
    python -m pip --python /venv install --cache-dir /pip-cache --constraint constraints.txt '.[serve]'


FROM base AS cpu
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vaeserve" \
      org.opencontainers.image.description="Serves variational autoencoders for anomaly detection over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

COPY --from=builder /venv /venv

ENV PATH="/venv/bin:${PATH}" \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    GRPC_VERBOSITY=ERROR \
    VAESERVE_REPOSITORY_PATH=/models

# A number, because Kubernetes' runAsNonRoot can't tell whether a name is root's.
USER 65532:65532
EXPOSE 8001 8002
STOPSIGNAL SIGTERM
# The client gives up before the runtime does, so that a hung service has a message.
HEALTHCHECK --start-period=60s --interval=10s --timeout=10s --retries=3 \
    CMD ["vaeserve", "health", "localhost:8001", "--timeout", "5"]
ENTRYPOINT ["vaeserve"]
CMD ["serve"]
