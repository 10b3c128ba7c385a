# shellcheck shell=bash
# Sourced by the scripts in this folder. Each `need_…` function installs one tool, unless it is installed already.
# Supports Debian, Ubuntu and macOS with Homebrew. On other systems it prints what to install.

# Pinned, so that checks give the same result everywhere. Keep sqlx-cli in line with `sqlx` in Cargo.toml.
CARGO_DENY_VERSION=0.20.2
SQLX_CLI_VERSION=0.9.0
SCHEMATHESIS_VERSION=4.32.5
HYPOTHESIS_VERSION=6.170.15 # generates the requests that schemathesis sends
AIOSMTPD_VERSION=1.4.6 # the mail server of the tests
AXE_VERSION=4.10.3 # finds what keeps people from using a page
KUBERNETES_VALIDATE_VERSION=1.37.0 # contains the schemas of Kubernetes up to this version

# Take the types of queries from `.sqlx/`, even if DATABASE_URL happens to be set.
export SQLX_OFFLINE=true
# After `su`, root's PATH lacks sbin, which contains runuser.
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin"

step() { printf '\n==> %s\n' "$*"; }
die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Prints the comment at the top of the calling script.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "script/${0##*/}"; }

# wrong_usage WHY
wrong_usage() {
    printf '%s: %s\n\n' "$0" "$1" >&2
    usage >&2
    exit 2
}

# no_arguments "$@": for a script whose only option is --help.
no_arguments() {
    case ${1-} in -h | --help) usage; exit ;; esac
    [ $# -eq 0 ] || wrong_usage "unknown argument: $1"
}

# build ARGUMENT…: runs `cargo build` and shows one line with a counter, instead of a line for each of hundreds of crates.
build() {
    step "Building (takes several minutes the first time)"
    local line count=0 start=$SECONDS terminal=
    if [ -t 1 ]; then terminal=yes; fi
    cargo build "$@" 2>&1 | while IFS= read -r line; do
        case $line in
            *" Downloading "* | *" Downloaded "* | *" Updating "* | *" Locking "* | *" Finished "*) continue ;;
            *" Compiling "*) ;;
            *) # a warning, an error, or waiting for another cargo process
                if [ -n "$terminal" ]; then printf '\r\033[K'; fi
                printf '%s\n' "$line"
                continue
                ;;
        esac
        count=$((count + 1))
        if [ -n "$terminal" ]; then
            printf '\r\033[K    %s crates: %s' "$count" "$(echo "${line#*Compiling }" | cut -d ' ' -f 1)"
        elif [ $((count % 100)) -eq 0 ]; then
            printf '    %s crates\n' "$count"
        fi
    done
    if [ -n "$terminal" ]; then printf '\r\033[K'; fi
    printf '    done in %ss\n' $((SECONDS - start))
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "run this as root, or install sudo: $*"
    fi
}

# Refreshes the package lists only if the first attempt fails, because they may be missing or too old.
apt_install() {
    local log
    log=$(mktemp)
    set -- as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
    "$@" >"$log" 2>&1 </dev/null ||
        { as_root apt-get -qq update && "$@"; } >"$log" 2>&1 </dev/null ||
        { cat "$log" >&2; die "apt-get failed"; }
    rm -f "$log"
}

# Downloads a package into this folder. Refreshes the package lists as above.
apt_download() {
    local log
    log=$(mktemp)
    { apt-get -qq download "$1" || { as_root apt-get -qq update && apt-get -qq download "$1"; }; } >"$log" 2>&1 </dev/null ||
        { cat "$log" >&2; die "apt-get failed"; }
    rm -f "$log"
}

# install WHAT "APT PACKAGES" "BREW ARGUMENTS"
install_package() {
    if have apt-get; then
        echo "Installing $1 (apt: $2)"
        as_root true # asks for the password before the output goes to a log
        # shellcheck disable=SC2086 # a list
        apt_install $2
    elif have brew; then
        echo "Installing $1 (brew: $3)"
        # shellcheck disable=SC2086 # a list
        brew install --quiet $3
    else
        die "$1 is missing. Install it by hand, because there is neither apt-get nor Homebrew"
    fi
}

need_rust() {
    have cargo || die "Rust is missing. Install it from https://rustup.rs"
    # ring and some of the tools compile C.
    have cc || [ "$(uname)" != Darwin ] || die "a C compiler is missing. Run xcode-select --install"
    have cc || install_package "a C compiler" "gcc libc6-dev" ""
}

# need_component CARGO_COMMAND COMPONENT
need_component() {
    cargo "$1" --version >/dev/null 2>&1 && return
    have rustup || die "cargo $1 is missing. Install $2 for your version of Rust"
    echo "Installing $2 (rustup)"
    rustup --quiet component add "$2"
}

# need_cargo_tool CRATE VERSION CARGO_COMMAND [INSTALL ARGUMENTS]
need_cargo_tool() {
    local crate=$1 version=$2 command=$3
    shift 3
    case " $(cargo "$command" --version 2>/dev/null) " in *" $version "*) return ;; esac
    echo "Installing $crate $version (cargo; takes one to two minutes)"
    # Without optimization it is fast enough, and builds in a third of the time.
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --debug --locked "$@" "$crate@$version"
}

need_cargo_deny() { need_cargo_tool cargo-deny "$CARGO_DENY_VERSION" deny; }

need_sqlx_cli() {
    need_cargo_tool sqlx-cli "$SQLX_CLI_VERSION" sqlx --no-default-features --features postgres,rustls
}

# need_python_tool WHAT HOME REQUIREMENT…: installs a Python tool in an environment of its own, unless HOME/bin/WHAT runs.
need_python_tool() {
    local what=$1 home=$2
    shift 2
    "$home/bin/$what" --version >/dev/null 2>&1 && return
    # On Debian, venv is a separate package. The Python that comes with macOS is too old.
    local usable='import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'
    python3 -c "$usable" 2>/dev/null || install_package Python python3-venv python
    python3 -c "$usable" || die "$what needs Python 3.11 or newer, with venv"
    echo "Installing $what (pip, into ${home##*/} under target)"
    rm -rf "$home"
    python3 -m venv "$home"
    "$home/bin/pip" install --quiet --disable-pip-version-check "$@"
}

# Sets SCHEMATHESIS. It is installed in its own Python environment under target.
need_schemathesis() {
    local home=$PWD/target/schemathesis-$SCHEMATHESIS_VERSION-$HYPOTHESIS_VERSION
    export SCHEMATHESIS=$home/bin/schemathesis
    need_python_tool schemathesis "$home" "schemathesis==$SCHEMATHESIS_VERSION" "hypothesis==$HYPOTHESIS_VERSION"
}

# Sets KUBERNETES_VALIDATE, which compares Kubernetes manifests with the schemas that it contains.
need_kubernetes_validate() {
    local home=$PWD/target/kubernetes-validate-$KUBERNETES_VALIDATE_VERSION
    export KUBERNETES_VALIDATE=$home/bin/kubernetes-validate
    need_python_tool kubernetes-validate "$home" "kubernetes-validate==$KUBERNETES_VALIDATE_VERSION"
}

# Sets MAIL_SERVER_PYTHON, a Python that can run the mail server in tests/mail.
need_mail_server() {
    local home=$PWD/target/aiosmtpd-$AIOSMTPD_VERSION
    export MAIL_SERVER_PYTHON=$home/bin/python
    need_python_tool aiosmtpd "$home" "aiosmtpd==$AIOSMTPD_VERSION"
}

# Node 20.19 or newer, which the linters of the OpenAPI document need. Debian 12 has an older one.
need_node() {
    local usable='const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)'
    if have npm && node -e "$usable" 2>/dev/null; then return; fi
    have npm || install_package "Node.js" "nodejs npm" node
    node -e "$usable" 2>/dev/null && return
    # The npm registry has Node itself as a package.
    local home=$PWD/target/node
    [ -x "$home/node_modules/node/bin/node" ] || npm install --silent --no-fund --no-audit --prefix "$home" node@22 npm@11
    PATH="$home/node_modules/node/bin:$home/node_modules/.bin:$PATH"
    export PATH
    node -e "$usable" || die "Node 20.19 or newer is needed"
}

# Sets AXE, the script of axe-core, which finds what keeps people from using a page.
need_axe() {
    local home=$PWD/target/axe-core-$AXE_VERSION
    export AXE=$home/node_modules/axe-core/axe.min.js
    if [ -f "$AXE" ]; then return; fi
    need_node
    echo "Installing axe-core (npm, into ${home##*/} under target)"
    npm install --silent --no-fund --no-audit --ignore-scripts --prefix "$home" "axe-core@$AXE_VERSION"
}

need_shellcheck() { have shellcheck || install_package ShellCheck shellcheck shellcheck; }

# For the commands in docs/guide.md.
need_curl() { have curl || install_package curl "curl ca-certificates" curl; }

need_jq() { have jq || install_package jq jq jq; }

need_haproxy() { have haproxy || install_package HAProxy haproxy haproxy; }

# Sets PROMTOOL, the checker of Prometheus' rules. Debian has it only in the package of the server, which would run from then
# on. So the program is taken out of that package, which isn't installed.
need_promtool() {
    PROMTOOL=$(first promtool "$PWD/target/promtool/usr/bin/promtool") && export PROMTOOL && return
    if have apt-get && have dpkg-deb; then
        local home=$PWD/target/promtool
        echo "Installing promtool (apt: prometheus, into ${home##*/} under target)"
        rm -rf "$home"
        mkdir -p "$home"
        (cd "$home" && { apt_download prometheus && dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb; })
    else
        install_package promtool "" prometheus
    fi
    PROMTOOL=$(first promtool "$PWD/target/promtool/usr/bin/promtool") || die "promtool is installed but can't be found"
    export PROMTOOL
}

# Prints the folder of the PostgreSQL server's programs, which Debian and Homebrew don't add to the PATH.
postgres_bin() {
    local dir found=
    for dir in /usr/local/opt/postgresql*/bin /opt/homebrew/opt/postgresql*/bin /usr/lib/postgresql/*/bin \
        "$(pg_config --bindir 2>/dev/null)" "$(dirname "$(command -v initdb)")"; do
        if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then found=$dir; fi
    done
    [ -n "$found" ] && echo "$found"
}

need_postgres() {
    postgres_bin >/dev/null && return
    if ! have apt-get; then
        install_package PostgreSQL "" postgresql@17
        return
    fi
    # We start private servers. Keep Debian's package from creating one that starts at boot.
    local conf=/etc/postgresql-common/createcluster.d/no-main-cluster.conf
    as_root mkdir -p "${conf%/*}"
    echo "create_main_cluster = false" | as_root tee "$conf" >/dev/null
    install_package PostgreSQL postgresql ""
    as_root rm -f "$conf"
}

# first COMMAND…: prints the path of the first command that exists.
first() {
    local command
    for command in "$@"; do
        if have "$command"; then command -v "$command"; return; fi
    done
    return 1
}

find_browser() {
    CHROMIUM=$(first "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable /snap/bin/chromium \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" \
        /Applications/Chromium.app/Contents/MacOS/Chromium) &&
        CHROMEDRIVER=$(first "${CHROMEDRIVER:-}" chromedriver chromium.chromedriver /snap/bin/chromium.chromedriver) &&
        export CHROMIUM CHROMEDRIVER
}

need_browser() {
    find_browser && return
    if [ "$(uname)" = Darwin ]; then
        install_package "Chrome and its driver" "" "--cask google-chrome chromedriver"
    elif grep -qs '^ID=ubuntu' /etc/os-release; then
        # Ubuntu provides Chromium only as a snap, which includes the driver.
        have snap || install_package snapd snapd ""
        echo "Installing Chromium and its driver (snap: chromium)"
        as_root snap install chromium
    else
        install_package "Chromium and its driver" "chromium chromium-driver" ""
    fi
    find_browser || die "Chromium and chromedriver are installed but can't be found. Set CHROMIUM and CHROMEDRIVER to their paths"
}

# PostgreSQL doesn't run as root. Debian's package creates the user postgres.
as_postgres() {
    if [ "$(id -u)" -eq 0 ]; then
        (cd / && runuser -u postgres -- "$@")
    else
        "$@"
    fi
}

# Starts a private PostgreSQL on a socket in a temporary folder, until the script ends. Sets DATABASE_URL.
start_postgres() {
    pg_bin=$(postgres_bin)
    pg_home=$(mktemp -d /tmp/dojo-pg.XXXXXX) # not TMPDIR, which is too long for the path of a socket on macOS
    trap stop_postgres EXIT
    if [ "$(id -u)" -eq 0 ]; then chown postgres "$pg_home"; fi
    {
        as_postgres "$pg_bin/initdb" -D "$pg_home/data" -U postgres -A trust -E UTF8 --no-locale --no-sync &&
            as_postgres "$pg_bin/pg_ctl" -D "$pg_home/data" -w -l "$pg_home/log" \
                -o "-c listen_addresses='' -c unix_socket_directories='$pg_home' -c fsync=off" start
    } >"$pg_home/start.log" 2>&1 </dev/null || { cat "$pg_home"/*log >&2; die "PostgreSQL did not start"; }
    export DATABASE_URL="postgres:///postgres?host=$pg_home&user=postgres"
}

stop_postgres() {
    as_postgres "$pg_bin/pg_ctl" -D "$pg_home/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$pg_home"
    unset DATABASE_URL
    trap - EXIT
}
