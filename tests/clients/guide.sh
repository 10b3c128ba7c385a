#!/usr/bin/env bash
# Usage: tests/clients/guide.sh [extract]
#
# Runs the code in docs/guide.md against a service and its sandbox, and plays the customer. tests/clients/run.sh calls it.
#
#   extract  only write the programs in TypeScript and Python to where their type checkers find them
#
# Settings: BASE_URL, SANDBOX_URL and API_KEY, as for run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=$PWD/tests/clients
rust=${CARGO_TARGET_DIR:-target}/debug/examples/guide

# Prints the blocks of code in this language.
blocks() {
    awk -v begin="\`\`\`$1" '$0 == "```" { inside = 0 } inside; $0 == begin { inside = 1 }' docs/guide.md
}

mkdir -p "$here/typescript/generated"
blocks ts >"$here/typescript/generated/guide.ts"
blocks python >"$here/python/guide.py"
case "$#:${1-}" in
0:) ;;
1:extract) exit ;;
*)
    echo "Usage: tests/clients/guide.sh [extract]" >&2
    exit 1
    ;;
esac

dir=$(mktemp -d)
program=
# shellcheck disable=SC2317,SC2329 # the trap calls it
clean_up() {
    [ -z "$program" ] || kill "$program" 2>/dev/null || true
    rm -rf "$dir"
}
trap clean_up EXIT

fail() {
    echo "$*" >&2
    cat "$dir"/output "$dir"/errors >&2 2>/dev/null || true
    exit 1
}

service() { curl -sS --fail-with-body "$BASE_URL/v1/$1" -H "Authorization: Bearer $API_KEY" "${@:2}"; }
sandbox() { curl -sS --fail-with-body "$SANDBOX_URL/_sandbox/$1" "${@:2}"; }

# The links about this reference must be this: created once, paid in full, and refunded once.
is_sold_once() {
    local links
    links=$(service "payment-links?reference=Order+$1" |
        jq -c '[.data[] | [.status, .confirmed, .capturedAmount.value, .refundedAmount.value]]')
    [ "$links" = '[["Captured",true,2450,350]]' ] || fail "the links about order $1 are $links"
    links=$(sandbox payment-intents | jq --arg reference "Order $1" '[.[] | select(.reference == $reference)] | length')
    [ "$links" = 1 ] || fail "Dojo has $links payments for order $1"
}

# prints LINE: the program must have printed this line, a regular expression.
prints() { grep -qxE "$1" "$dir/output" || fail "it doesn't print $1"; }

# sells ORDER COMMAND…: runs a program that sells an order. Dojo's response to the first call is lost, so it must retry.
sells() {
    local order=$1 intent="" n deadline=$((SECONDS + 120))
    shift
    sandbox faults -X DELETE
    sandbox faults -d '{"operation": "create", "kind": "cutAfter"}' >/dev/null
    # The background process may open the file late, and until then it would have the output of the previous program.
    : >"$dir/output"
    rm -f "$dir/errors"
    "$@" "$order" >"$dir/output" 2>&1 &
    program=$!
    until intent=$(grep -oE 'pi_[A-Za-z0-9_-]+' "$dir/output" | head -n 1) && [ -n "$intent" ]; do
        kill -0 "$program" 2>/dev/null || fail "it ended without a link"
        [ $SECONDS -lt $deadline ] || fail "it prints no link"
        sleep 0.2
    done
    [ "$(sandbox faults | jq length)" = 0 ] || fail "Dojo's response was not lost"
    # One page is full before the payment, so that its change is on the next page.
    for n in {1..20}; do
        service payment-links -H 'Content-Type: application/json' -o "$dir/link" \
            -d "{\"amount\": {\"value\": 100, \"currencyCode\": \"GBP\"}, \"reference\": \"$order $n\"}"
    done
    sandbox "payment-intents/$intent/pay" -d '{}' >/dev/null
    while kill -0 "$program" 2>/dev/null; do
        [ $SECONDS -lt $deadline ] || fail "it doesn't notice the payment"
        sleep 0.2
    done
    wait "$program" || fail "it failed"
    program=
    prints 'Paid: 2450. Hand over the goods'
    prints 'Refunded: 350. Left: 2100'
    prints ".* \"?$order 1\"? \"?Created\"?"
    prints ".* \"?$order 20\"? \"?Created\"?"
    prints ".* \"?Order $order\"? \"?Captured\"?"
    is_sold_once "$order"
}

echo "==> The guide: shell"
blocks sh >"$dir/guide.sh"
sandbox faults -X DELETE
(cd "$dir" && timeout 180 bash -euo pipefail guide.sh >output 2>errors) || fail "the shell commands failed"
is_sold_once 241
prints '  "operation": "Succeeded",'
prints '.* Order 241 Captured'
prints '.* Order 242 Created'
# The problem in the guide is the one that its command gets.
jq -c . "$dir/output" >"$dir/values" 2>/dev/null || true
blocks json | jq -c . | grep -qxFf - "$dir/values" || fail "the problem in the guide is another one"

echo "==> The guide: TypeScript"
sells typescript "$here/typescript/node_modules/.bin/tsx" "$here/typescript/generated/guide.ts"

echo "==> The guide: Python"
sells python target/clients-venv/bin/python -u "$here/python/guide.py"

echo "==> The guide: Rust"
cargo build --workspace --example guide --locked --quiet
sells rust "$rust"
