# syntax is plain: buildah, podman and docker build this file alike. `make image` prepares what it copies (build/wheels)
# and names the base; nothing in here reaches for the network.

# Debian with python3; a reference with its digest, or what tools/image/debian-base makes. It is only built in: of it the
# last stage gets the interpreter, the libraries it loads, and no more. No default, since an unpinned base is a mistake.
ARG BASE
FROM ${BASE} AS build
ARG QUIETLY="--quiet --root-user-action ignore --disable-pip-version-check --no-cache-dir --no-compile --no-index"

# pip runs from its own wheel, so the base needs none; every wheel is held against its hash in the lock, which names them
# all (tools/lock).
COPY build/wheels /build/wheels
COPY requirements.lock tools/image/build-requirements.lock tools/image/assemble.py /build/
RUN set -eu; \
    site=$(python3 /build/assemble.py site); \
    pip=$(echo /build/wheels/pip-*.whl); \
    install() { python3 "$pip/pip" install $QUIETLY --find-links /build/wheels --no-deps --require-hashes --only-binary :all: "$@"; }; \
    install --target "/out/packages$site" --requirement /build/requirements.lock; \
    install --target /build/tools --requirement /build/build-requirements.lock

COPY pyproject.toml README.md LICENSE /build/source/
COPY agent /build/source/agent
RUN set -eu; \
    site=$(python3 /build/assemble.py site); \
    PYTHONPATH=/build/tools python3 -m pip install $QUIETLY --no-deps --no-build-isolation --target "/out/agent$site" /build/source; \
    python3 /build/assemble.py image /out

# Three layers, the steadiest first: a new agent on an old interpreter is a small pull for 5,000 nodes.
FROM scratch
COPY --from=build /out/python /
COPY --from=build /out/packages /
COPY --from=build /out/agent /

# What saves memory for the whole process belongs into the second line, and nowhere else.
ENV PATH=/usr/local/bin:/usr/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_ARENA_MAX=1

ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=https://github.com/nodediag/nodediag
LABEL org.opencontainers.image.title="nodediag" \
      org.opencontainers.image.description="Names what is wrong on a Kubernetes node: hung containerd shims, zombies, conntrack DNS races, a slow kubelet." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"

# Root, since containerd's sockets and the bundles are root's alone; what root may do here, the manifest says. No
# HEALTHCHECK: Kubernetes does not read it, and has probes.
USER 0:0
WORKDIR /
ENTRYPOINT ["nodediag"]
CMD ["run"]
