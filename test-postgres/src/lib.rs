//! A private Postgres server for tests, chaos, the demo and the benchmark.
//!
//! The server ends with the process that started it, however that ends.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

/// A server of its own, in a new folder, on a free port.
///
/// It runs under a small shell that lives as long as its standard input is open. When this process ends, however it ends,
/// the input closes, and the shell stops the server and removes the folder.
pub struct Postgres {
    port: u16,
    keeper: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// Creates a cluster, then obeys: `start`, `stop` (at once, as a power cut does), and the end of its input.
const KEEPER: &str = r#"
bin=$1 port=$2 make=$3 primary=$4
parent=/tmp
case $make in
durable) parent=/var/tmp ;; # on many systems, /tmp is in memory
cluster)
    # Linux keeps /dev/shm in memory, where creating a database takes an eighth of the time. In a container it may be tiny.
    free=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')
    if [ "${free:-0}" -ge 4000000 ] && [ -w /dev/shm ]; then parent=/dev/shm; fi
    ;;
esac
home=$(mktemp -d "$parent/dojo-pg.XXXXXX") || exit 1
cluster() {
    "$bin/initdb" -D "$home/data" -U postgres -A trust -E UTF8 --no-locale --no-sync &&
    echo "
        listen_addresses = '127.0.0.1'
        unix_socket_directories = '$home'
        max_connections = 800
        # Only a crash of the machine could lose anything, and then the server is gone anyway.
        fsync = off
        full_page_writes = off
        # In memory, a checkpoint costs little, and space is scarce.
        max_wal_size = 256MB
        # It would visit each of hundreds of short-lived databases once a minute.
        autovacuum = off
        # A server that is told to stop waits for connections that have not said yet who they are. A frozen client never does.
        authentication_timeout = 5s
    " >>"$home/data/postgresql.conf"
}
# Every commit waits for the disk. The larger limits make filling large tables faster.
durable() {
    "$bin/initdb" -D "$home/data" -U postgres -A trust -E UTF8 --no-locale &&
    echo "
        listen_addresses = '127.0.0.1'
        unix_socket_directories = ''
        shared_buffers = 1GB
        maintenance_work_mem = 512MB
        max_wal_size = 8GB
    " >>"$home/data/postgresql.conf"
}
# A copy of the server on that port, which goes on receiving what is written there.
standby() {
    "$bin/pg_basebackup" -D "$home/data" -d "host=127.0.0.1 port=$primary user=postgres" \
        --checkpoint=fast --write-recovery-conf --no-sync &&
    echo "unix_socket_directories = '$home'" >>"$home/data/postgresql.conf"
}
start() { "$bin/pg_ctl" -D "$home/data" -o "-p $port" -l "$home/log" -w start; }
stop() { "$bin/pg_ctl" -D "$home/data" -m immediate -w stop; }
$make >"$home/out" 2>&1 || cat "$home/out" >&2
while read -r order; do
    if $order >"$home/out" 2>&1; then echo ok; else echo failed; cat "$home/out" "$home/log" >&2; fi
done
# It may be frozen.
kill -CONT "$(head -n 1 "$home/data/postmaster.pid" 2>/dev/null)" 2>/dev/null
stop >/dev/null 2>&1
rm -rf "$home"
"#;

impl Postgres {
    /// Starts a server.
    ///
    /// # Panics
    ///
    /// If `PostgreSQL` is not installed or does not start. So do the other functions if the server does not obey.
    #[must_use]
    pub fn start() -> Self {
        Self::make("cluster", "")
    }

    /// Starts a server whose data is on disk: what it has committed survives a power cut.
    #[must_use]
    pub fn start_durable() -> Self {
        Self::make("durable", "")
    }

    /// Starts a standby of the server on this port.
    #[must_use]
    pub fn standby_of(port: u16) -> Self {
        Self::make("standby", &port.to_string())
    }

    fn make(kind: &str, primary: &str) -> Self {
        let bin =
            bin_dir().expect("PostgreSQL's server programs are installed: script/test does that");
        let port = free_port();
        let mut shell = if is_root() {
            // Postgres refuses to run as root. Debian's package creates a user for it.
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--", "sh", "-c", KEEPER, "keeper"]);
            command
        } else {
            let mut command = Command::new("sh");
            command.args(["-c", KEEPER, "keeper"]);
            command
        };
        let mut keeper = shell
            .arg(bin)
            .arg(port.to_string())
            .arg(kind)
            .arg(primary)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A signal to this process's group, such as Ctrl-C or a closed terminal, would end the shell before it has
            // stopped the server and cleaned up.
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        let orders = keeper.stdin.take();
        let answers = BufReader::new(keeper.stdout.take().expect("its output is piped"));
        let mut postgres = Self {
            port,
            keeper,
            orders,
            answers,
        };
        postgres.resume();
        postgres
    }

    /// Stops the server as a power cut does. What was committed stays.
    pub fn stop(&mut self) {
        self.order("stop");
    }

    /// Starts the server again after [`Self::stop`].
    pub fn resume(&mut self) {
        self.order("start");
    }

    /// The port that the server listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of one of its databases.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    fn order(&mut self, order: &str) {
        let orders = self.orders.as_mut().expect("open until it is dropped");
        writeln!(orders, "{order}").expect("the keeper reads");
        let mut answer = String::new();
        self.answers
            .read_line(&mut answer)
            .expect("the keeper writes");
        assert_eq!(
            answer.trim(),
            "ok",
            "Postgres did not {order}; its log is above"
        );
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.keeper.wait();
    }
}

/// A port that nobody uses, and a different one each time. The system assigns ports from 32768 upwards, so no other program
/// gets this one by chance.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 22_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Several programs on one machine begin at different places.
    let start = u16::try_from(std::process::id() * 61 % u32::from(COUNT)).unwrap_or(0);
    (0..COUNT)
        .map(|_| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("there is a free port")
}

/// Where Postgres's server programs are. Debian and Homebrew keep them off the `PATH`.
#[must_use]
pub fn bin_dir() -> Option<PathBuf> {
    let from_path = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<_> = std::env::split_paths(&from_path).collect();
    for (parent, below) in [
        ("/usr/lib/postgresql", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr/local/opt", "bin"),
    ] {
        let mut versions: Vec<_> = Path::new(parent)
            .read_dir()
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path().join(below)))
            .collect();
        versions.sort();
        found.extend(versions.into_iter().rev());
    }
    found.into_iter().find(|dir| {
        ["initdb", "postgres", "pg_ctl", "pg_basebackup"]
            .iter()
            .all(|program| dir.join(program).exists())
    })
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}
