# rank-k serve in a container: see docs/how-to/containers.md.

ARG PYTHON=3.13
FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/rank-k \
    && /opt/rank-k/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /opt/rank-k/bin/python -m pip install --no-cache-dir "rank-k[embedded,serve] @ file://$(echo /wheels/*.whl)"
# Weights are not part of the image unless asked for: --build-arg WEIGHTS=smollm2-135m-instruct
ARG WEIGHTS=
RUN mkdir -p /var/lib/rank-k \
    && if [ -n "$WEIGHTS" ]; then RANK_K_CACHE=/var/lib/rank-k /opt/rank-k/bin/rank-k fetch "$WEIGHTS"; fi

FROM python:${PYTHON}-slim
# libgomp is what llama.cpp needs and the base does not have.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /var/lib/rank-k
COPY --from=build /opt/rank-k /opt/rank-k
COPY --from=build --chown=10001:10001 /var/lib/rank-k /var/lib/rank-k
ENV PATH=/opt/rank-k/bin:$PATH \
    HOME=/var/lib/rank-k \
    PYTHONUNBUFFERED=1 \
    RANK_K_CACHE=/var/lib/rank-k \
    RANK_K_HOST=0.0.0.0
WORKDIR /var/lib/rank-k
USER 10001:10001
EXPOSE 8787
STOPSIGNAL SIGTERM
# No proxy is asked, whatever the environment says. A server that stops takes no connection, which is not healthy.
HEALTHCHECK --interval=30s --timeout=5s --start-period=2m \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8787, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["rank-k"]
CMD ["serve"]
