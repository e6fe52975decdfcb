# syntax=docker/dockerfile:1
# Builds Rushgate in a container. The image runs as an unprivileged user and needs nothing else.

FROM rust:1.94-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
# A profile of Cargo.toml. `bench-dev` and `dev` are for trying it out: they build faster and run
# slower.
ARG PROFILE=release
WORKDIR /src
COPY . .
# The commit that `rushgate --version` prints:
# docker build --build-arg RUSHGATE_COMMIT=$(git rev-parse --short=12 HEAD)
ARG RUSHGATE_COMMIT
# The cache of target/ outlives this build. Cargo compares modification times, so a checkout whose
# files are older than the last build in the cache would yield the binary of that build. Therefore
# every file gets the time of this build.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    find . -path ./target -prune -o -type f -exec touch {} + \
    && cargo build --profile "$PROFILE" --locked --features jemalloc --bin rushgate \
    && cp "target/$(echo "$PROFILE" | sed 's/^dev$/debug/')/rushgate" /usr/local/bin/rushgate

# The load generator, for the profile `load` of docker-compose.yml.
FROM build AS load-build
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/loadtest/target \
    cd loadtest && cargo build --release --locked --features rush --bin rush && cp target/release/rush /usr/local/bin/rush

FROM debian:bookworm-slim AS load
COPY --from=load-build /usr/local/bin/rush /usr/local/bin/rushgate /usr/local/bin/
USER 10001:10001
ENTRYPOINT ["rush", "--rushgate", "/usr/local/bin/rushgate"]

FROM debian:bookworm-slim AS rushgate
# The time zone database: the popular products are refreshed at the shop's midnight.
RUN apt-get update && apt-get install -y --no-install-recommends tzdata && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/rushgate /usr/local/bin/rushgate
USER 10001:10001
EXPOSE 8080 9090
# Reads /readyz: a healthy container can decide requests.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["rushgate", "ready"]
# After SIGTERM it serves for RUSHGATE_DRAIN_SECS (default 5), then stops within 10 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["rushgate"]
CMD ["serve"]
