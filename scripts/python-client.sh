#!/usr/bin/env bash
# Generates the Python package's API from openapi/mitose-v1.json and installs the package.
#
#   scripts/python-client.sh VENV      into a virtual environment, which is made where it is not there
#
# The generated code (python/mitose/api) is committed, so that the package can be installed from the
# sources alone: run this when the document has changed.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${1:?give the directory of a virtual environment}
GENERATOR=openapi-python-client==0.29.1

[ -x "$VENV/bin/pip" ] || python3 -m venv "$VENV"
"$VENV/bin/pip" --quiet install "$GENERATOR" ruff
rm -rf python/mitose/api
PATH="$VENV/bin:$PATH" "$VENV/bin/openapi-python-client" generate \
    --path openapi/mitose-v1.json --output-path python/mitose/api --meta none \
    --fail-on-warning
# Built beside the sources, so that none of it stays there.
BUILD=$(mktemp -d)
trap 'rm -rf "$BUILD"' EXIT
cp -r python "$BUILD/"
"$VENV/bin/pip" --quiet install --force-reinstall "$BUILD/python"
"$VENV/bin/python" -c 'import mitose, mitose.api.models; print("mitose is installed in", mitose.__path__[0])'
