# The images that a release ships and that tests run. The build context is a
# folder that holds the static binaries and nothing else:
#   docker build --target operator DIR
FROM scratch AS operator
LABEL org.opencontainers.image.title="toolward-operator" \
      org.opencontainers.image.description="Kubernetes operator for MCP servers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --chmod=0755 toolward-operator /toolward-operator
USER 65532:65532
ENTRYPOINT ["/toolward-operator"]

FROM scratch AS sidecar
LABEL org.opencontainers.image.title="toolward-sidecar" \
      org.opencontainers.image.description="Access control in front of an MCP server" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --chmod=0755 toolward-sidecar /toolward-sidecar
USER 65532:65532
ENTRYPOINT ["/toolward-sidecar"]
