# The same commands as `cargo xtask`, for those who like `just`.

# List the recipes
default:
    @just --list

# Find or install everything the workspace needs
setup:
    cargo xtask setup

# Leave target/release/bridge-user
build *ARGS:
    cargo xtask build {{ARGS}}

# Formatting, lints, documentation, dependencies
lint:
    cargo xtask lint

# Run a suite: unit, netns, services, docker, host, vm or all
test *ARGS:
    cargo xtask test {{ARGS}}

# Run the suite inside other kernels
vm *ARGS:
    cargo xtask vm {{ARGS}}

# Write the tables of docs/kernels.md
kernel-table:
    cargo xtask kernel-table

# What CI runs
ci:
    .ci/run

# Show what bridge-user does, step by step
demo:
    cargo xtask demo

# Make packages, tarball, bill of materials and checksums in target/dist
dist:
    cargo xtask dist

# Measure a datapath next to a direct connection, for example `just bench steer`
bench *ARGS:
    cargo xtask bench {{ARGS}}
