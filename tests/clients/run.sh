#!/usr/bin/env bash
# Usage: tests/clients/run.sh [lint]
#
# Proves that openapi.yaml is good for client generators: lints it, generates a client in TypeScript and one in Python,
# type-checks programs for each, and runs the programs against a service and its sandbox. Then runs the code in
# docs/guide.md. Stops at the first failure.
#
#   lint  only lint; needs no service
#
# Settings:
#   BASE_URL     the service
#   SANDBOX_URL  the sandbox that the service uses in place of Dojo, and that sends it webhooks
#   API_KEY      an API key with all scopes
#   READ_KEY     another client's API key, with only links:read
#   CLIENT_RATE  optional: the service's CLIENT_RATE. At most 100 tests the rate limit
#   OPENAPI      optional: the document. Default: openapi.yaml
#   PROGRAM      optional: the program, which prints the document in OpenAPI 3.0. Default: builds it with Cargo
set -euo pipefail
cd "$(dirname "$0")/../.."

here=tests/clients
venv=target/clients-venv
document=${OPENAPI:-openapi.yaml}
log=$(mktemp)
document_3_0=$(mktemp)
trap 'rm -f "$log" "$document_3_0"' EXIT

fail() {
    echo "$*" >&2
    exit 1
}

# Runs a command quietly, and shows its output if it fails. In a function, `set -e` has no effect then.
step() {
    local name=$1
    shift
    echo "==> $name"
    "$@" >"$log" 2>&1 || {
        cat "$log"
        fail "$name: failed"
    }
}

# Installs what the lock file lists, unless that is installed already.
install_npm() {
    local folder=$1
    if ! cmp -s "$folder/package-lock.json" "$folder/node_modules/.installed"; then
        npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund &&
            cp "$folder/package-lock.json" "$folder/node_modules/.installed"
    fi
}

install_pip() {
    if ! cmp -s $here/python/requirements.txt $venv/installed; then
        python3 -m venv --clear $venv &&
            $venv/bin/pip install --quiet --disable-pip-version-check --requirement $here/python/requirements.txt &&
            cp $here/python/requirements.txt $venv/installed
    fi
}

# The linters and generators must not report how they are used.
export REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true DO_NOT_TRACK=1

print_3_0() {
    if [ -n "${PROGRAM-}" ]; then
        "$PROGRAM" openapi --version 3.0
    else
        cargo run --quiet --locked -- openapi --version 3.0
    fi >"$document_3_0"
}

lint() {
    step "Install the linters" install_npm $here/linters
    step "Lint: Spectral" \
        $here/linters/node_modules/.bin/spectral lint --ruleset $here/.spectral.yaml --fail-severity hint "$document"
    step "Lint: Redocly" \
        $here/linters/node_modules/.bin/redocly lint --config $here/redocly.yaml --format stylish "$document"
    step "Print the document in OpenAPI 3.0" print_3_0
    step "Lint OpenAPI 3.0: Spectral" \
        $here/linters/node_modules/.bin/spectral lint --ruleset $here/.spectral.yaml --fail-severity hint "$document_3_0"
    # In 3.0, a license is identified by a URL, and there is none for a choice of two. The known types of problems are referred
    # to by an extension, which the rule about unused components doesn't read.
    step "Lint OpenAPI 3.0: Redocly" \
        $here/linters/node_modules/.bin/redocly lint --config $here/redocly.yaml --format stylish \
        --skip-rule info-license-strict --skip-rule no-unused-components "$document_3_0"
}

case "$#:${1-}" in
0:) ;;
1:lint)
    lint
    exit
    ;;
*) fail "Usage: tests/clients/run.sh [lint]" ;;
esac

for name in BASE_URL SANDBOX_URL API_KEY READ_KEY; do
    [ -n "${!name-}" ] || fail "$name is not set"
done
[ "${CLIENT_RATE:-200}" -le 100 ] || echo "Skipping the rate limit: CLIENT_RATE is not set or greater than 100"

lint

step "The guide: extract its programs" $here/guide.sh extract

ts=$here/typescript
step "TypeScript: install" install_npm $ts
step "TypeScript: generate the client" $ts/node_modules/.bin/openapi-typescript "$document" --output $ts/generated/api.ts
step "TypeScript: check the types" $ts/node_modules/.bin/tsc --project $ts
step "TypeScript: take a payment" $ts/node_modules/.bin/tsx $ts/example.ts
step "TypeScript: provoke problems" $ts/node_modules/.bin/tsx $ts/problems.ts

py=$here/python
step "Python: install" install_pip
step "Python: generate the client" $venv/bin/openapi-python-client generate --path "$document" \
    --config $py/config.yml --meta none --output-path $py/dojo_payment_links --overwrite --fail-on-warning
step "Python: check the types" $venv/bin/mypy --config-file $py/mypy.ini $py/*.py
step "Python: take a payment" $venv/bin/python $py/example.py
step "Python: provoke problems" $venv/bin/python $py/problems.py

$here/guide.sh
