# Segmint as a server on CPUs. `docker build -t segmint .`, then see docs/deploy.md.
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1 \
    SEGMINT_CACHE=/tmp/segmint MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /opt/segmint
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install torch==2.13.0 --index-url ${TORCH_INDEX}

# The packages first, with an empty Segmint, so that a change of ours does not fetch them all again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir -p src/segmint && touch src/segmint/__init__.py \
    && pip install --constraint constraints.txt '.[serve,page,export,video]'
COPY src src
RUN pip install --no-deps --force-reinstall .

RUN useradd --create-home --uid 10001 segmint
USER segmint
WORKDIR /home/segmint

VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=90s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# `exec`, so that `docker stop` reaches the server, which then finishes what it is answering.
CMD ["sh", "-c", "exec segmint serve /models/* --host 0.0.0.0 ${SEGMINT_API_KEY:+--api-key-env SEGMINT_API_KEY}"]
