# Builds the service: docker build -t dojo-payment-links .
# Builds the sandbox: docker build -t dojo-sandbox --target sandbox .

FROM rust:1.95-slim-trixie AS build
WORKDIR /src
ENV SQLX_OFFLINE=true

# Build only the dependencies, so that this layer is cached until a manifest or the lock file changes.
# The cleanup makes Cargo compile our own crates below, even if their files are older than these placeholders.
COPY Cargo.toml Cargo.lock ./
COPY openapi-guard/Cargo.toml openapi-guard/
COPY sandbox/Cargo.toml sandbox/
COPY test-postgres/Cargo.toml test-postgres/
RUN mkdir src openapi-guard/src sandbox/src test-postgres/src \
    && touch openapi-guard/src/lib.rs test-postgres/src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs > sandbox/src/main.rs \
    && cargo build --release --locked --workspace --bins \
    && cargo clean --release --package dojo-payment-links --package dojo-sandbox

COPY . .
RUN cargo build --release --locked --workspace --bins


FROM gcr.io/distroless/cc-debian13:nonroot AS sandbox
LABEL org.opencontainers.image.title="dojo-sandbox" \
      org.opencontainers.image.description="A sandbox for Dojo: its payment API, checkout page and signed webhooks" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /src/target/release/dojo-sandbox /usr/local/bin/
USER 65532:65532
ENV SANDBOX_LISTEN_ADDR=0.0.0.0:9400
EXPOSE 9400
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s CMD ["dojo-sandbox", "healthcheck"]
ENTRYPOINT ["dojo-sandbox"]


FROM gcr.io/distroless/cc-debian13:nonroot AS service
LABEL org.opencontainers.image.title="dojo-payment-links" \
      org.opencontainers.image.description="A REST service for Dojo's payment links" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /src/target/release/dojo-payment-links /usr/local/bin/
USER 65532:65532
ENV LISTEN_ADDR=0.0.0.0:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s CMD ["dojo-payment-links", "healthcheck"]
ENTRYPOINT ["dojo-payment-links"]
CMD ["serve"]
