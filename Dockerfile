# One image for the API (the default command), the worker (`python -m worker`) and the migrations
# (`python -m shared.migrate`).
#
# Pinned by tag only. To pin the bytes as well, append the digest that
# `docker buildx imagetools inspect python:3.13-slim-trixie` prints: python:3.13-slim-trixie@sha256:…
FROM python:3.13-slim-trixie AS base


# The dashboard and GraphiQL. The final image has no Node.
FROM node:24-trixie-slim AS pages

WORKDIR /build/web
COPY server/web/package.json server/web/package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund
COPY server/web/ ./
RUN npm run build


FROM base AS builder

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m pip install --no-cache-dir uv==0.13.9 && python -m venv --without-pip /opt/venv

# Exactly [project].dependencies, the extra `traces` (off until a variable is set), and what they need. The lock has the
# other extras too, so it is a constraint and is not installed itself: a version or a file without a hash in it is
# refused. Wheels only: nothing is compiled here.
WORKDIR /build
COPY pyproject.toml requirements.lock ./
RUN uv pip install --python /opt/venv/bin/python --no-cache --compile-bytecode --only-binary :all: \
        --require-hashes --constraints requirements.lock --requirements pyproject.toml --extra traces

# Compiled now because the running container cannot write; by hash because file times differ between builds.
WORKDIR /app
COPY server/ server/
COPY worker/ worker/
COPY shared/ shared/
RUN rm -r server/web && python -m compileall -q --invalidation-mode unchecked-hash server worker shared
COPY --from=pages /build/static/ server/static/


FROM base

RUN groupadd --gid 10001 app \
    && useradd --uid 10001 --gid app --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin app

COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /app /app

# A container's loopback cannot be reached from outside, so HOST is every interface. The start then requires API_TOKEN,
# or ALLOW_ANONYMOUS_MUTATIONS=1 to do without.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8000

WORKDIR /app
# By number, so that an orchestrator sees that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

# Of the API; compose.yaml has one per service. Without a proxy, because HTTP_PROXY may be set to reach the exchange.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['PORT'] + '/livez', timeout=4)"]

# The exec form, so that the process itself gets the signals.
CMD ["python", "-m", "server"]
