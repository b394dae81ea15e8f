# A service of recommendations on the CPU:
#   docker build . -t recbole-diffurec
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/shared:/model:ro" recbole-diffurec
# serves shared/model.safetensors. Any other command of recbole-diffurec may stand behind the image's name.

FROM python:3.12.11-slim-bookworm AS build
RUN python -m venv /opt/env
ENV PATH=/opt/env/bin:$PATH
# First PyTorch's build for processors: that of PyPI brings gigabytes for GPUs.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.6,<3"
WORKDIR /source
COPY LICENSE README.md pyproject.toml setup.py ./
COPY properties properties
COPY recbole_diffurec recbole_diffurec
# What is without a version is this folder, which says those of its own requirements.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[serve]" "safetensors>=0.4,<1"

FROM python:3.12.11-slim-bookworm
RUN useradd --uid 10001 --create-home service
COPY --from=build /opt/env /opt/env
ENV PATH=/opt/env/bin:$PATH
USER 10001
WORKDIR /home/service
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["recbole-diffurec"]
CMD ["serve", "/model/model.safetensors", "--host=0.0.0.0", "--port=8000"]
