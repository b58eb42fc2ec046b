# Workstation and CI image: everything trtq needs to quantize, evaluate and build ahead of time. `docker build -t trtq .`
FROM python:3.12-slim-bookworm
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make=4.3-4.1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/trtq
COPY . .
RUN make venv
ENV PATH="/opt/trtq/.venv/bin:${PATH}"
ENTRYPOINT ["trtq"]
