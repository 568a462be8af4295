# One image for all of MetaLayer's services; which one it is, its command says. See docs/containers.md.
# Built by hand and checked by tests; not yet built with an engine.

# Everything that only building needs stays in this stage.
FROM python:3.12-slim AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY requirements.lock ./
RUN pip --python /opt/venv/bin/python install --require-hashes --no-deps -r requirements.lock
COPY pyproject.toml README.md LICENSE dagster.yaml ./
COPY metalayer metalayer
COPY sql sql
RUN pip --python /opt/venv/bin/python install --no-deps --no-build-isolation .
RUN pip --python /opt/venv/bin/python uninstall --yes hatchling editables trove-classifiers

FROM python:3.12-slim
LABEL org.opencontainers.image.title="MetaLayer" \
      org.opencontainers.image.description="Trusted customer and sales tables in PostgreSQL, from landed CSV exports" \
      org.opencontainers.image.licenses="Apache-2.0"
# A number, so that a host can give folders to it; no shell, no home, no pip.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /state --shell /usr/sbin/nologin metalayer \
    && install -d -o metalayer -g metalayer /state /state/dagster /backups /landing \
    && rm -rf /usr/local/lib/python3.12/site-packages/pip* /usr/local/lib/python3.12/ensurepip /usr/local/bin/pip*
COPY --from=builder /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    METALAYER_HOME=/state \
    METALAYER_LANDING=/landing \
    DAGSTER_HOME=/state/dagster
WORKDIR /state
USER 10001:10001
CMD ["metalayer", "--help"]
