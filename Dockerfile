# Two images from one file: `docker build --target cpu .` and `docker build --target cuda .`
# Nothing is downloaded when they run: the checkpoint that is served is in the package.
# Both have the extra `otel` too, so that ALBIREO_OTLP_ENDPOINT is all that traces need.

# --- the wheel of this repository
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
RUN pip install --no-cache-dir "setuptools>=77"
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY observations observations
COPY tokenizers tokenizers
COPY models models
COPY index index
COPY service service
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# --- cpu: an environment in /opt/albireo; the layer with the dependencies is made again only when they change
FROM python:3.11-slim-bookworm AS cpu-environment
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/albireo
COPY pyproject.toml constraints.txt ./
RUN /opt/albireo/bin/python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" -c constraints.txt torch
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['cpu'], *p['optional-dependencies']['otel'], sep='\n')" > requirements.txt \
    && /opt/albireo/bin/python -m pip install --no-cache-dir -c constraints.txt -r requirements.txt
COPY --from=wheel /wheels /wheels
RUN /opt/albireo/bin/python -m pip install --no-cache-dir --no-deps /wheels/*.whl

FROM python:3.11-slim-bookworm AS cpu
RUN useradd --uid 10001 --create-home albireo && install -d -o albireo -g albireo /data /models
COPY --from=cpu-environment /opt/albireo /opt/albireo
ENV PATH=/opt/albireo/bin:$PATH \
    ALBIREO_HOST=0.0.0.0 \
    ALBIREO_PORT=8000 \
    ALBIREO_GRPC_PORT=8001 \
    ALBIREO_DATA_FOLDER=/data \
    HF_HOME=/models
USER albireo
WORKDIR /home/albireo
VOLUME /data /models
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-m", "albireo.service.healthcheck"]
CMD ["albireo", "serve"]

# --- cuda: the same on NVIDIA's base; torch and FAISS bring the CUDA libraries that they were built with
FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS cuda-environment
WORKDIR /src
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/albireo
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['gpu'], *p['optional-dependencies']['otel'], sep='\n')" > requirements.txt \
    && /opt/albireo/bin/python -m pip install --no-cache-dir -c constraints.txt -r requirements.txt
COPY --from=wheel /wheels /wheels
RUN /opt/albireo/bin/python -m pip install --no-cache-dir --no-deps /wheels/*.whl

FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home albireo && install -d -o albireo -g albireo /data /models
COPY --from=cuda-environment /opt/albireo /opt/albireo
ENV PATH=/opt/albireo/bin:$PATH \
    ALBIREO_HOST=0.0.0.0 \
    ALBIREO_PORT=8000 \
    ALBIREO_GRPC_PORT=8001 \
    ALBIREO_DATA_FOLDER=/data \
    HF_HOME=/models \
    ALBIREO_DEVICE=cuda
USER albireo
WORKDIR /home/albireo
VOLUME /data /models
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-m", "albireo.service.healthcheck"]
CMD ["albireo", "serve"]
