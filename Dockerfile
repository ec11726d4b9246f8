# syntax=docker/dockerfile:1

# The ordinary lock: runs on the CPU as it is, and on a GPU with `docker run --gpus all`.
FROM python:3.11.14-slim-bookworm AS build
ENV UV_LINK_MODE=copy
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv venv /opt/venv
WORKDIR /build
COPY requirements.lock ./
# sync takes the lock as it is: label-studio-ml's own pins are overridden in it
RUN uv pip sync --no-cache --python /opt/venv/bin/python requirements.lock
COPY pyproject.toml README.md ./
COPY neat_backend ./neat_backend
RUN uv pip install --no-cache --no-deps --python /opt/venv/bin/python .

FROM python:3.11.14-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    NEAT_DATA_DIR=/data \
    PORT=9090
RUN groupadd --system --gid 10001 neat \
    && useradd --system --uid 10001 --gid neat --home-dir /data --shell /usr/sbin/nologin neat \
    && install --directory --owner=neat --group=neat /data
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY _wsgi.py model.py ./
USER 10001:10001
VOLUME /data
EXPOSE 9090
# The first answer comes once the database is up to date, a few seconds after the start.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=2)"]
CMD ["neat-backend", "serve"]
