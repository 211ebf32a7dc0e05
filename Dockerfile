# syntax=docker/dockerfile:1.7@sha256:a57df69d0ea827fb7266491f2813635de6f17269be881f696fbfdf2d83dda33e
#
#   docker build -t envoy-mcp-auth .                         the server
#   docker build -t demo-servers --target demo-servers .     the servers of the demo
#   docker build -t litellm --target litellm .               the LiteLLM of the demo
#
# The first two build for other platforms too: docker buildx build --platform
# linux/amd64,linux/arm64 . Go compiles for them on the machine it runs on, and
# the same sources make the same bytes. docs/compose.md has how to check that.

FROM --platform=$BUILDPLATFORM golang:1.26.8-bookworm@sha256:dc9ad6c05acc7a88e5b71bde60a5fe3bd4b9f0db209011711b464107438a8107 AS build
WORKDIR /src
ENV GOCACHE=/var/cache/go-build GOTOOLCHAIN=local
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH VERSION=dev
# Static: the images below have no C library. And nothing of this place is in them:
# no path, no state of a checkout.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/var/cache/go-build \
    export CGO_ENABLED=0 GOOS="$TARGETOS" GOARCH="$TARGETARCH" && \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/envoy-mcp-auth ./cmd/envoy-mcp-auth && \
    go build -trimpath -buildvcs=false -ldflags "-s -w" -o /out/demo-servers ./examples/demo/servers && \
    mkdir -p /out/run/envoy-mcp-auth

# The pinned LiteLLM, from the same lock as tools/install uses.
FROM python:3.12.13-slim-bookworm@sha256:8a7e7cc04fd3e2bd787f7f24e22d5d119aa590d429b50c95dfe12b3abe52f48b AS litellm
COPY tools/litellm.requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes -r /tmp/requirements.txt
USER 65532:65532
# Its home is where it may write.
ENV HOME=/tmp
ENTRYPOINT ["litellm"]

FROM gcr.io/distroless/static-debian12:nonroot@sha256:d093aa3e30dbadd3efe1310db061a14da60299baff8450a17fe0ccc514a16639 AS demo-servers
COPY --from=build /out/demo-servers /usr/local/bin/demo-servers
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/demo-servers"]

# The last target is what a build without --target makes.
FROM gcr.io/distroless/static-debian12:nonroot@sha256:d093aa3e30dbadd3efe1310db061a14da60299baff8450a17fe0ccc514a16639 AS envoy-mcp-auth
LABEL org.opencontainers.image.title="envoy-mcp-auth" \
      org.opencontainers.image.description="Service credentials for agent traffic through Envoy" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/envoy-mcp-auth /usr/local/bin/envoy-mcp-auth
# Where the default socket goes. A volume mounted here becomes the user's too.
COPY --from=build --chown=65532:65532 --chmod=0750 /out/run/envoy-mcp-auth /run/envoy-mcp-auth
# By number, so that Kubernetes' runAsNonRoot can tell.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/envoy-mcp-auth"]
CMD ["serve", "-c", "/etc/envoy-mcp-auth/policy.yaml"]
