# The service on a CPU: docker build -t cwf-milvus . && docker run --rm cwf-milvus serve --help
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE* ./
COPY cwf_milvus cwf_milvus
RUN python -m venv /opt/cwf \
 && /opt/cwf/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu '.[serve]'

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 photos \
 && mkdir /data /cache && chown photos /data /cache
COPY --from=build /opt/cwf /opt/cwf
ENV PATH=/opt/cwf/bin:$PATH PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/cache
USER photos
WORKDIR /data
VOLUME ["/data", "/cache"]
EXPOSE 8765
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/readyz', timeout=4)"]
# Set CWF_MILVUS_SERVE_TOKEN: the service is reached from outside the container.
ENTRYPOINT ["cwf-milvus"]
CMD ["serve", "--host", "0.0.0.0", "--uri", "/data/photos.db"]
