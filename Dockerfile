# The image: the interpreter of BASE and one directory with what requirements.lock pins by hash.
# Nothing in it is writable, no process in it is root, and no shell is needed to run it.
# By digest: a tag can be moved. To renew it: docker buildx imagetools inspect python:3.13-slim-bookworm
ARG BASE=docker.io/library/python:3.13.15-slim-bookworm@sha256:ed86c82274b3c69b52fb5820f358f0bd7df0b603332063cb5c6e32bd220c3e6e

FROM ${BASE} AS build
# where the wheels come from, for those who have a mirror or a directory of them
ARG PIP_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX
COPY requirements.lock /build/
RUN python3 -m venv /build/venv \
    && /build/venv/bin/pip install --disable-pip-version-check --no-cache-dir --no-compile \
       --require-hashes --only-binary :all: --target /opt/syncd -r /build/requirements.lock \
    && mkdir /build/state
COPY syncd /opt/syncd/syncd
# unchecked: the pycs are right whatever times a registry or a copy gives the files
RUN rm -rf /opt/syncd/bin \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/syncd \
    && printf '#!/usr/bin/env python3\nfrom syncd.commands.main import main\n\nmain()\n' > /build/syncd \
    && chmod 0755 /build/syncd

FROM ${BASE}
ARG BASE
# `make image` sets them
ARG VERSION=0 REVISION=unknown CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="syncd" \
      org.opencontainers.image.description="Watches the secret files of Aidbox and reports each change to its consumers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.vendor="syncd" \
      org.opencontainers.image.authors="syncd maintainers <maintainers@syncd.io>"
COPY --from=build /opt/syncd /opt/syncd
# for docker exec and kubectl exec
COPY --from=build /build/syncd /usr/local/bin/syncd
COPY --from=build --chown=65532:65532 /build/state /var/lib/syncd
ENV PYTHONPATH=/opt/syncd \
    PYTHONUNBUFFERED=1 \
    SYNCD_LISTEN=0.0.0.0:9753
# a number, so that runAsNonRoot can be checked; no name is needed
USER 65532:65532
VOLUME ["/var/lib/syncd"]
EXPOSE 9753
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["python3", "-m", "syncd.commands.healthcheck"]
ENTRYPOINT ["python3", "-m", "syncd"]
CMD ["run"]
