#!/usr/bin/env bash
# Tests of the scripts, used as from a terminal. script/test runs this.
# Usage: tests/scripts.sh [arguments] [prepare] [demo]   (groups of tests; default: all)
# shellcheck disable=SC2317,SC2329 # some functions are called by name
set -euo pipefail
cd "$(dirname "$0")/.."

# Each job gets its own process group, as in a terminal.
set -m

dir=$(mktemp -d)
jobs=()
clean_up() {
    local job
    for job in ${jobs[@]+"${jobs[@]}"}; do kill -KILL -- "-$job" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap clean_up EXIT

fail() {
    echo "FAILED: $1" >&2
    if [ -n "${2-}" ]; then cat "$2" >&2; fi
    exit 1
}

# eventually SECONDS WHAT COMMAND…: waits until the command succeeds, or fails after SECONDS.
eventually() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        if [ $SECONDS -ge $limit ]; then fail "never happened: $what" "${out-}"; fi
        sleep 0.1
    done
}

# The scripts print help and reject wrong arguments even on a machine where nothing can be built.
test_arguments() {
    local script option status wrong
    bare() { env CARGO_HOME=/nowhere PATH=/usr/bin:/bin "$@"; }
    for script in script/bench script/chaos script/demo script/prepare script/test; do
        for option in --help -h; do
            bare "$script" "$option" >"$dir/out" 2>"$dir/err" || fail "$script $option" "$dir/err"
            head -n 1 "$dir/out" | grep -q "^Usage: $script" || fail "$script $option prints no help" "$dir/out"
            [ ! -s "$dir/err" ] || fail "$script $option prints an error" "$dir/err"
            ! grep -Eq '^#|^set ' "$dir/out" || fail "$script $option prints its source" "$dir/out"
        done
        status=0
        bare "$script" --wrong >"$dir/out" 2>"$dir/err" || status=$?
        [ $status -eq 2 ] || fail "$script --wrong exits with $status" "$dir/err"
        grep -q 'unknown argument: --wrong' "$dir/err" || fail "$script does not name the wrong argument" "$dir/err"
    done
    for wrong in "script/bench --only" "script/bench --quick now" "script/chaos --seconds" "script/demo --pay now"; do
        status=0
        # shellcheck disable=SC2086 # a command and its arguments
        bare $wrong >/dev/null 2>&1 || status=$?
        [ $status -eq 2 ] || fail "$wrong exits with $status"
    done
    echo "ok: help and wrong arguments"
}

# Ctrl-C leaves .sqlx unchanged.
test_prepare() {
    out=$dir/prepare
    cp -R .sqlx "$dir/before"
    rm -rf target/sqlx-new
    script/prepare >"$out" 2>&1 &
    jobs+=($!)
    has_begun() { [ -d target/sqlx-new ] || ! diff -rq .sqlx "$dir/before" >/dev/null; }
    eventually 300 "prepare describes the queries" has_begun
    kill -INT -- "-$!"
    if wait $!; then fail "an interrupted prepare succeeds" "$out"; fi
    diff -rq .sqlx "$dir/before" || {
        rm -rf .sqlx
        cp -R "$dir/before" .sqlx
        fail "an interrupted prepare changes .sqlx"
    }
    rm -rf target/sqlx-new
    unset out
    echo "ok: an interrupted prepare"
}

# Starts a demo. Sets `demo` (its process id), `out`, `processes` and `folders`.
start_demo() {
    local port
    out=$dir/demo-$1
    script/demo >"$out" 2>&1 &
    demo=$!
    jobs+=("$demo")
    eventually 300 "the demo asks for a payment" grep -q 'Open the link' "$out"
    # Postgres detaches itself from its parent process. Its port identifies it.
    port=$(sed -n 's|.*postgres://postgres@127.0.0.1:\([0-9]*\)/.*|\1|p' "$out")
    [ -n "$port" ] || fail "the demo does not say where Postgres is" "$out"
    ps -A -o pid= -o ppid= -o args= >"$dir/ps"
    processes=$(awk -v demo="$demo" -v port="$port" '
        { pid[NR] = $1; parent[NR] = $2 }
        $0 ~ "/dojo-pg[.].*-p " port "( |$)" { ours[$1] = 1 }
        END {
            ours[demo] = 1
            do {
                more = 0
                for (i in pid) if (parent[i] in ours && !(pid[i] in ours)) more = ours[pid[i]] = 1
            } while (more)
            for (one in ours) print one
        }' "$dir/ps")
    folders="${TMPDIR:-/tmp}/dojo-payment-links-demo-$demo
$(sed -n "s|.* -D \\(/tmp/dojo-pg[.][^/]*\\)/data -p $port\\( .*\\)\\{0,1\\}\$|\\1|p" "$dir/ps")"
    [ "$(wc -l <<<"$folders")" -eq 2 ] || fail "expected one Postgres, found: $folders" "$dir/ps"
    # The demo; Postgres, the service and the sandbox; a keeper for each; Postgres's child processes.
    [ "$(wc -l <<<"$processes")" -gt 7 ] || fail "processes are missing: $processes" "$dir/ps"
}

# nothing_left HOW PROCESSES FOLDERS
nothing_left() {
    local left=
    # shellcheck disable=SC2086 # lists
    gone() {
        left=$(ps -o pid=,args= -p "$(echo $1 | tr ' ' ,)" | grep -v defunct; ls -d $2 2>/dev/null) || true
        [ -z "$left" ]
    }
    local limit=$((SECONDS + 20))
    until gone "$2" "$3"; do
        [ $SECONDS -lt $limit ] || fail "after $1, this is left: $left" "$out"
        sleep 0.1
    done
    echo "ok: a demo ended by $1"
}

# Pretends that this machine has a screen. Adds the pages that are opened on it to the file `opened`.
fake_screen() {
    opened=$dir/opened
    mkdir "$dir/bin"
    cat >"$dir/bin/open" <<END
#!/bin/sh
echo "\$1" >>"$opened"
END
    chmod +x "$dir/bin/open"
    ln -s open "$dir/bin/xdg-open"
    export DISPLAY=:9 PATH="$dir/bin:$PATH"
}

# On a machine with a screen, the demo opens the page to pay on, and the paid link at the console.
opens_pages() {
    local short sandbox intent console id
    : >"$opened"
    start_demo opened
    has_opened() { grep -q "$1" "$opened"; }
    eventually 20 "the demo opens the page to pay on" has_opened '/checkout/pi_'
    short=$(sed -n 's|^ *\(http.*/p/.*\) is its short address$|\1|p' "$out")
    curl -fsS --noproxy localhost "$short" >/dev/null || fail "the short address does not work: $short" "$out"
    sandbox=$(sed -n 's|/checkout/pi_.*||p' "$opened")
    intent=$(sed -n 's|.*/checkout/||p' "$opened")
    curl -fsS --noproxy localhost -H 'content-type: application/json' -d '{}' \
        "$sandbox/_sandbox/payment-intents/$intent/pay" >/dev/null || fail "the link can't be paid" "$out"
    eventually 60 "the demo opens the console" has_opened '/links/plink_'
    console=$(sed -n 's|/links/plink_.*||p' "$opened")
    id=$(sed -n 's|.*/links/||p' "$opened")
    grep -q "  $id is Created" "$out" || fail "the console shows another link: $id" "$out"
    curl -fsS --noproxy localhost "$console/sign-in" | grep -q 'API key' || fail "nobody can sign in at $console" "$out"
    kill -TERM "$demo"
    nothing_left "SIGTERM after the payment" "$processes" "$folders"
    echo "ok: the demo opens its pages"
}

# No process and no folder is left, however the demo ends.
test_demo() {
    script/demo --pay >"$dir/pay" 2>&1 || fail "script/demo --pay" "$dir/pay"
    grep -q 'Paid. Everything is stopped.' "$dir/pay" || fail "the link was not paid" "$dir/pay"
    [ "$(wc -l <"$dir/pay")" -lt 100 ] || fail "the output is too long" "$dir/pay"
    echo "ok: script/demo --pay"

    fake_screen
    opens_pages

    local first first_processes first_folders
    start_demo hangup
    first=$demo first_processes=$processes first_folders=$folders
    start_demo terminate
    grep -q 'is in use. Using [0-9]* instead' "$out" || fail "the demo does not mention its ports" "$out"
    # Closing a terminal signals the whole foreground process group.
    kill -HUP -- "-$first"
    kill -TERM "$demo"
    nothing_left "a closed terminal" "$first_processes" "$first_folders"
    nothing_left SIGTERM "$processes" "$folders"

    start_demo kill
    first=$demo first_processes=$processes first_folders=$folders
    start_demo interrupt
    kill -KILL "$first"
    kill -INT -- "-$demo"
    nothing_left SIGKILL "$first_processes" "$first_folders"
    nothing_left Ctrl-C "$processes" "$folders"
}

if [ $# -eq 0 ]; then set -- arguments prepare demo; fi
for group; do "test_$group"; done
