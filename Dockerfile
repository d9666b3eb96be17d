# Everything in one image: `make stages` and `make test` as a user without privileges. See docs/docker.md.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends make g++ git libgl1 libxrender1 \
    && rm -rf /var/lib/apt/lists/*

ENV VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# CUDA=1 takes the torch build with CUDA libraries (several GB); the default build runs on CPUs.
ARG CUDA=0
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /app
COPY Makefile requirements.txt requirements-ray.txt requirements-dev.txt requirements-waymo.txt ./
# torch first: the lock names its version, and either build of that version satisfies it.
RUN python="$(command -v python3.11 || command -v python3.12)" && "$python" -m venv "$VENV" \
    && if [ "$CUDA" != 1 ]; then \
         "$VENV/bin/pip" install -q --no-cache-dir ${CPU_INDEX:+--extra-index-url "$CPU_INDEX"} \
             "$(grep '^torch==' requirements.txt)+cpu"; \
       fi \
    && PIP_NO_CACHE_DIR=1 make setup-dev

COPY . .
RUN useradd --create-home --uid 1000 spacer && mkdir -p runs /data && chown spacer runs /data
USER spacer
# /data: WOMD, laid out as Waymo's bucket. /app/runs: everything the stages write.
VOLUME ["/data", "/app/runs"]
CMD ["make", "help"]
