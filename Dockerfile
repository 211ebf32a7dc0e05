# syntax=docker/dockerfile:1
#
#   docker build -t envoy-mcp-auth .                         the server
#   docker build -t demo-servers --target demo-servers .     the servers of the demo
#   docker build -t litellm --target litellm .               the LiteLLM of the demo
#
# The first two build for other platforms too: docker buildx build --platform
# linux/amd64,linux/arm64 . Go compiles for them on the machine it runs on.

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
ENV GOCACHE=/var/cache/go-build
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH VERSION=dev
# Static: the images below have no C library.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/var/cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/envoy-mcp-auth ./cmd/envoy-mcp-auth && \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w" -o /out/demo-servers ./examples/demo/servers && \
    mkdir -p /out/run/envoy-mcp-auth

# The pinned LiteLLM, from the same lock as tools/install uses.
FROM python:3.12-slim AS litellm
COPY tools/litellm.requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes -r /tmp/requirements.txt
USER 65532:65532
# Its home is where it may write.
ENV HOME=/tmp
ENTRYPOINT ["litellm"]

FROM gcr.io/distroless/static-debian12:nonroot AS demo-servers
COPY --from=build /out/demo-servers /usr/local/bin/demo-servers
ENTRYPOINT ["/usr/local/bin/demo-servers"]

# The last target is what a build without --target makes.
FROM gcr.io/distroless/static-debian12:nonroot AS envoy-mcp-auth
LABEL org.opencontainers.image.title="envoy-mcp-auth" \
      org.opencontainers.image.description="Service credentials for agent traffic through Envoy" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/envoy-mcp-auth /usr/local/bin/envoy-mcp-auth
# Where the default socket goes. A volume mounted here becomes the user's too.
COPY --from=build --chown=65532:65532 --chmod=0750 /out/run/envoy-mcp-auth /run/envoy-mcp-auth
ENTRYPOINT ["/usr/local/bin/envoy-mcp-auth"]
CMD ["serve", "-c", "/etc/envoy-mcp-auth/policy.yaml"]
