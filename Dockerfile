# Image of `vip2clip serve`, and of all other commands: docker run IMAGE COMMAND. See docs/docker.md.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# Index of PyTorch for a CPU. For NVIDIA GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=2.13.0
# Extras of the package to install.
ARG EXTRAS=serve,watch
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/vip2clip
ENV PATH=/opt/vip2clip/bin:$PATH
# In a layer of its own: it is large and changes rarely.
RUN pip install --index-url "${TORCH_INDEX}" "torch==${TORCH}"
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && pip install "$(echo /wheels/*.whl)[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/vip2clip /opt/vip2clip
RUN useradd --uid 10001 --user-group --create-home vip2clip \
    && install --directory --owner vip2clip --group vip2clip /cache
ENV PATH=/opt/vip2clip/bin:$PATH \
    HF_HOME=/cache \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/vip2clip
# Models that are downloaded from the Hub.
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# The server answers the requests that it has accepted, `watch` finishes its photo.
STOPSIGNAL SIGTERM
ENTRYPOINT ["vip2clip"]
# Set the environment variable VIP2CLIP_API_KEY: without it, the server does not start on the network.
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
