# The service, and with `--target sandbox` the stand-in for Dojo: docker build -t dojo-payment-links .

FROM rust:1.95-slim-trixie AS build
WORKDIR /src
ENV SQLX_OFFLINE=true

# The dependencies alone, with nothing of ours: this layer lasts until the manifests or the lock change.
# The clean-up makes Cargo compile our own crates below, whose files may be older than these empty ones.
COPY Cargo.toml Cargo.lock ./
COPY openapi-guard/Cargo.toml openapi-guard/
COPY sandbox/Cargo.toml sandbox/
RUN mkdir src openapi-guard/src sandbox/src \
    && touch openapi-guard/src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs > sandbox/src/main.rs \
    && cargo build --release --locked --workspace --bins \
    && cargo clean --release --package dojo-payment-links --package dojo-sandbox

COPY . .
RUN cargo build --release --locked --workspace --bins


FROM gcr.io/distroless/cc-debian13:nonroot AS sandbox
LABEL org.opencontainers.image.title="dojo-sandbox" \
      org.opencontainers.image.description="A stand-in for Dojo: its payment API, checkout page and signed webhooks" \
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
      org.opencontainers.image.description="A REST service around Dojo's payment links" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /src/target/release/dojo-payment-links /usr/local/bin/
USER 65532:65532
ENV LISTEN_ADDR=0.0.0.0:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s CMD ["dojo-payment-links", "healthcheck"]
ENTRYPOINT ["dojo-payment-links"]
CMD ["serve"]
