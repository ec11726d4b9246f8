# docker build .                                              runs on the CPU, and on a GPU with --gpus all
# docker build --build-arg WEIGHTS_OF=resnet18 .              with that encoder's weights inside, below /opt/weights,
#   where no volume hides them. This image is for that encoder alone: nothing is looked up or downloaded.
# docker build --build-arg VARIANT=cpu --build-arg TORCH_INDEX=https://… .
#   without CUDA's libraries, some gigabytes less. TORCH_INDEX: a package index that has the CPU builds of
#   the lock's torch and torchvision; the ordinary registry's torch needs CUDA's libraries also on a CPU.
# docker build --build-arg VARIANT=web .                      for `neat-backend web` alone: a tenth of the size
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
SHELL ["/bin/sh", "-eu", "-c"]
ARG VARIANT=cuda
ARG TORCH_INDEX=""
ARG WEIGHTS_OF=""
# UNCHECKED_HASH: modules are compiled once, here, and never compared with their sources.
ENV UV_LINK_MODE=copy PYC_INVALIDATION_MODE=UNCHECKED_HASH HF_HOME=/opt/weights TORCH_HOME=/opt/weights
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9 \
    && python3 -m venv --without-pip /opt/venv
WORKDIR /build
COPY requirements-runtime.lock ./
# --no-deps takes the lock as it is: label-studio-ml's own pins are overridden in it
RUN case "$VARIANT" in \
      cuda) cp requirements-runtime.lock all.lock ;; \
      cpu) \
        if [ -z "$TORCH_INDEX" ]; then echo "VARIANT=cpu needs TORCH_INDEX" >&2; exit 1; fi; \
        grep -vE '^(nvidia-|cuda-|triton|torch==|torchvision==|faiss-)' requirements-runtime.lock > all.lock; \
        sed -nE 's/^(faiss-cpu==[^ ]+).*/\1/p' requirements-runtime.lock >> all.lock; \
        grep -E '^torch(vision)?==' requirements-runtime.lock > torch.lock; \
        /opt/uv/bin/uv pip install --no-cache --no-deps --python /opt/venv/bin/python \
          --index-url "$TORCH_INDEX" -r torch.lock ;; \
      web) \
        if [ -n "$WEIGHTS_OF" ]; then echo "VARIANT=web has no encoder: leave WEIGHTS_OF empty" >&2; exit 1; fi; \
        grep -vE '^(nvidia|cuda|faiss)-|^(torch|torchvision|triton|numba|llvmlite|scipy|scikit-learn|joblib|sympy|mpmath|networkx|open-clip-torch|openvino|openvino-telemetry|timm|efficientnet-[a-z0-9-]+|hf-xet|huggingface-hub|safetensors)==' \
          requirements-runtime.lock > all.lock ;; \
      *) echo "VARIANT=$VARIANT: must be cuda, cpu or web" >&2; exit 1 ;; \
    esac; \
    /opt/uv/bin/uv pip install --no-cache --no-deps --compile-bytecode --python /opt/venv/bin/python -r all.lock; \
    find /opt/venv \( -name '*.a' -o -path '*/nvidia/*/include' -o -path '*/torch/include' \) -prune -exec rm -rf {} +
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY neat_backend ./neat_backend
RUN /opt/uv/bin/uv pip install --no-cache --no-deps --python /opt/venv/bin/python . \
    && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib/python3*/site-packages/neat_backend
# The encoder's weights, and those that a training begins with (or it begins from scratch).
RUN mkdir -p /opt/weights; \
    if [ -n "$WEIGHTS_OF" ]; then \
      /opt/venv/bin/python -c 'import sys; from neat_backend.models.encoders import build_encoder; build_encoder(sys.argv[1], device="cpu")' "$WEIGHTS_OF"; \
      /opt/venv/bin/python -c 'from neat_backend.models.weights import AUTO, starting_weights; print(starting_weights(AUTO).note)'; \
    fi; \
    chmod -R a+rX /opt/weights

FROM ${BASE}
# The base image brings Python's own modules without bytecode, and a read-only root keeps none.
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/(lib2to3/tests|test|dist-packages|site-packages)/' \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
ARG WEIGHTS_OF=""
# Other containers call this one, so it does not start without BASIC_AUTH_USER and BASIC_AUTH_PASS.
# The file system can be read-only: what is written goes to /data, /weights and /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    NEAT_DATA_DIR=/data \
    HF_HOME=${WEIGHTS_OF:+/opt}/weights \
    TORCH_HOME=${WEIGHTS_OF:+/opt}/weights \
    HF_HUB_OFFLINE=${WEIGHTS_OF:+1} \
    HOST=0.0.0.0 \
    PORT=9090
RUN groupadd --system --gid 10001 neat \
    && useradd --system --uid 10001 --gid neat --home-dir /data --shell /usr/sbin/nologin neat \
    && install --directory --owner=neat --group=neat /data /weights
COPY --from=build /opt/weights /opt/weights
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY _wsgi.py model.py ./
USER 10001:10001
VOLUME ["/data", "/weights"]
EXPOSE 9090
STOPSIGNAL SIGTERM
# The first answer comes once the database is up to date, a few seconds after the start.
# On a busy machine that takes minutes, and starting the check's own Python seconds.
HEALTHCHECK --interval=10s --timeout=20s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=15)"]
CMD ["neat-backend", "serve"]
