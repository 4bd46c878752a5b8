# What the demo and the tests need, on a machine without a GPU:
#
#   docker build -t amp_hooks .
#   docker run --rm amp_hooks                          # the demo
#   docker run --rm amp_hooks bash scripts/test.sh
FROM python:3.11-slim-bookworm
RUN apt-get update && \
    apt-get install -y --no-install-recommends build-essential && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /amp_hooks
COPY . .
RUN bash scripts/setup_env.sh
CMD ["bash", "scripts/demo.sh"]
