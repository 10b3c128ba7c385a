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
tsx=$here/typescript/node_modules/.bin/tsx
python=$PWD/target/clients-venv/bin/python
rust=${CARGO_TARGET_DIR:-target}/debug/examples/guide

# The section of the guide with the receivers of callbacks, and the other sections.
on_callbacks() { sed -n '/^## 7\. Be called$/,/^## 8\. /p' docs/guide.md; }
on_all_else() { sed '/^## 7\. Be called$/,/^## 8\. /d' docs/guide.md; }

# blocks LANGUAGE [FIRST [LAST]]: prints the blocks of code in this language, or those with these numbers.
blocks() {
    awk -v begin="\`\`\`$1" -v first="${2:-1}" -v last="${3:-1000}" '
        $0 == "```" { inside = 0 }
        inside && n >= first && n <= last
        $0 == begin { inside = 1; n++ }'
}

mkdir -p "$here/typescript/generated"
on_all_else | blocks ts >"$here/typescript/generated/guide.ts"
on_callbacks | blocks ts >"$here/typescript/generated/receiver.ts"
on_all_else | blocks python >"$here/python/guide.py"
on_callbacks | blocks python >"$here/python/receiver.py"
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

# Prints a port on which nothing listens.
free_port() {
    "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Runs commands of the guide, and prints what they print.
shell() { (cd "$dir" && timeout 60 bash -euo pipefail -c "$1" 2>errors); }

# delivered ENDPOINT LINK: prints the type, id and time of what was delivered about a link, once that includes its payment.
delivered() {
    service "$1/deliveries?status=Delivered" | jq -r --arg link "$2" '
        [.data[] | select(.paymentLinkId == $link)]
        | select(map(.type) | contains(["payment_link.created", "payment_link.captured"]))
        | .[] | "\(.type) \(.eventId) \(.lastAttempt.at)"'
}

# The receiver must have processed each of these events exactly once.
is_processed_once() {
    local type id at
    while read -r type id at; do
        [ "$(grep -cxF "$type $id" "$dir/output")" = 1 ] || fail "it doesn't process once: $type $id, delivered at $at"
    done <<<"$1"
}

# receives NAME COMMAND…: runs a receiver of callbacks, pays a link, and repairs the endpoint as the guide says.
receives() {
    local reference="Callbacks in $1" create ping repair endpoint link sent again signature deadline=$((SECONDS + 120))
    shift
    create=$(on_callbacks | blocks sh 1 1)
    ping=$(on_callbacks | blocks sh 2 2)
    repair=$(on_callbacks | blocks sh 3)
    PORT=$(free_port)
    export PORT
    : >"$dir/output"
    (cd "$dir" && exec bash -euo pipefail -c "$create"'; exec "$@"' - "$@") >"$dir/output" 2>&1 &
    program=$!
    until curl -sS -o /dev/null "http://127.0.0.1:$PORT" 2>"$dir/errors"; do
        kill -0 "$program" 2>/dev/null || fail "it ended"
        [ $SECONDS -lt $deadline ] || fail "it doesn't listen"
        sleep 0.2
    done
    endpoint=callback-endpoints/$(jq -r .id "$dir/endpoint.json")
    [ "$(shell "$ping")" = true ] || fail "it gets no ping: $(cat "$dir/ping.json")"
    prints 'ping evt_.*'

    link=$(service payment-links -H 'Content-Type: application/json' \
        -d "{\"amount\": {\"value\": 2450, \"currencyCode\": \"GBP\"}, \"reference\": \"$reference\"}")
    sandbox "payment-intents/$(jq -r .paymentIntentId <<<"$link")/pay" -d '{}' >/dev/null
    link=$(jq -r .id <<<"$link")
    until sent=$(delivered "$endpoint" "$link") && [ -n "$sent" ]; do
        [ $SECONDS -lt $deadline ] || fail "it doesn't get the events: $(service "$endpoint/deliveries")"
        sleep 0.2
    done
    is_processed_once "$sent"
    prints "$reference is paid. Hand over the goods"

    # Everything is sent again, and the receiver still has the secret from before the rotation.
    shell "$ping
$repair" >"$dir/repaired" || fail "the endpoint can't be repaired"
    # Until no event has the time from before.
    until again=$(delivered "$endpoint" "$link") && [ -n "$again" ] && ! grep -qxF "$sent" <<<"$again"; do
        [ $SECONDS -lt $deadline ] || fail "it doesn't get the events again: $(service "$endpoint/deliveries")"
        sleep 0.2
    done
    is_processed_once "$sent"
    [ "$(shell "$ping")" = true ] || fail "after the rotation, it gets no ping: $(cat "$dir/ping.json")"

    # A signature that is wrong, malformed or missing.
    for signature in v1,MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE= v1 v1,0 v1,é ''; do
        [ "$(curl -sS -o /dev/null -w '%{http_code}' "http://127.0.0.1:$PORT" -d '{"id": "evt_1", "type": "forged"}' \
            -H 'webhook-id: evt_1' -H "webhook-timestamp: $(date +%s)" -H "webhook-signature: $signature")" = 400 ] ||
            fail "it accepts the signature '$signature'"
    done
    ! grep -q forged "$dir/output" || fail "it processes a forged event"

    service "$endpoint" -X DELETE
    kill "$program"
    wait "$program" || true
    program=
}

echo "==> The guide: shell"
on_all_else | blocks sh >"$dir/guide.sh"
sandbox faults -X DELETE
(cd "$dir" && timeout 180 bash -euo pipefail guide.sh >output 2>errors) || fail "the shell commands failed"
is_sold_once 241
prints '  "operation": "Succeeded",'
prints '.* Order 241 Captured'
prints '.* Order 242 Created'
# The problem in the guide is the one that its command gets.
jq -c . "$dir/output" >"$dir/values" 2>/dev/null || true
on_all_else | blocks json | jq -c . | grep -qxFf - "$dir/values" || fail "the problem in the guide is another one"

echo "==> The guide: TypeScript"
sells typescript "$tsx" "$here/typescript/generated/guide.ts"

echo "==> The guide: a receiver in TypeScript"
receives TypeScript "$tsx" "$here/typescript/generated/receiver.ts"

echo "==> The guide: Python"
sells python "$python" -u "$here/python/guide.py"

echo "==> The guide: a receiver in Python"
receives Python "$python" -u "$here/python/receiver.py"

echo "==> The guide: Rust"
cargo build --workspace --example guide --locked --quiet
sells rust "$rust"
