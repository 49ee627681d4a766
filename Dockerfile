# Built with BuildKit (Docker 23 or later, Podman 4 or later) from the top of the repository:
#
#   docker build -t reliability-proxy:0.2.0 .
#
# Where packages come from is the builder's business. A pip configuration of one's own is lent to
# the build, and neither it nor the credentials in it end up in a layer:
#
#   docker build --secret id=pip,src=$HOME/.config/pip/pip.conf -t reliability-proxy:0.2.0 .
#
# The base must have glibc (core/memory/allocator.py tunes its allocator) and the Python that the
# tests ran with. It is named by digest, an index of all its architectures, so that builds come out
# the same; `make pin-base` writes today's, for Debian's security updates.
# Pinned on 2026-09-22.
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS wheels
WORKDIR /source
# Each wheel by version and hash, no compiler: a version without a wheel fails the build.
COPY image-requirements.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m pip download --no-cache-dir --require-hashes --only-binary=:all: \
      --requirement image-requirements.txt --dest /wheels
COPY pyproject.toml README.md LICENSE ./
COPY config ./config
COPY proxy ./proxy
# setuptools is one of the wheels, so that building needs no index either; the base's own is too old.
# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir --no-index --find-links=/wheels --upgrade setuptools \
    && python -m pip wheel --no-cache-dir --no-index --no-build-isolation --no-deps \
      --wheel-dir /wheels .

FROM ${BASE}
# Not named `proxy`: Debian has a user and a group of that name.
RUN groupadd --gid 10001 reliability \
    && useradd --uid 10001 --gid reliability --home-dir /data --no-create-home \
       --shell /usr/sbin/nologin reliability \
    && install -d -o reliability -g reliability -m 0750 /data /spool
# From the wheels alone, whose hashes were checked, and which are not copied: no index, no compiler,
# no second layer of them.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-index --find-links=/wheels "reliability-proxy[otel]"
# The ready config; mount another one over it.
COPY config/make-video.yaml /etc/reliability-proxy/config.yaml
ENV PROXY_CONFIG=/etc/reliability-proxy/config.yaml \
    JOBS_DB=/data/jobs.db \
    TRACE_DB=/data/trace.db \
    SPOOL_DIR=/spool \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Numbers, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 10001:10001
WORKDIR /data
# The only places that are written: `--read-only` needs nothing else. Apart, because bodies that wait
# must not fill the disk of the jobs.
VOLUME ["/data", "/spool"]
# Callers; Prometheus and probes. Egress ports and the admin API are not for other machines.
EXPOSE 8000 9464
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["reliability-proxy", "healthcheck"]
# Exec form: SIGTERM reaches the proxy itself, which then drains (30 s by default).
ENTRYPOINT ["reliability-proxy"]
CMD ["run"]
