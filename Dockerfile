# One image for code server, webserver and daemon. The database is a service of its own.
FROM python:3.12-slim

RUN useradd --create-home metalayer
WORKDIR /app

COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes --no-deps -r requirements.lock

COPY --chown=metalayer . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && install -d -o metalayer /dagster /state \
    && install -o metalayer dagster.yaml /dagster/

USER metalayer
ENV DAGSTER_HOME=/dagster METALAYER_HOME=/state
