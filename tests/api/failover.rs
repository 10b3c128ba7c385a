//! A primary with a synchronous standby behind `HAProxy`, as docs/operations.md describes it. The primary is lost and the
//! standby is promoted. The service continues without a restart, and nothing that it acknowledged is missing.

use std::{
    io::Write,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    faults::{Acknowledged, load, nothing_is_lost},
    support::{
        TestApp, eventually, eventually_within,
        postgres::{Postgres, free_port},
        proxy::Proxy,
        ten_pounds, within,
    },
};

/// How long after the promotion the service may take to serve again.
const LIMIT: Duration = Duration::from_secs(30);

/// `HAProxy` with the configuration from the docs. It ends with the process that started it, however that ends.
struct HaProxy {
    port: u16,
    keeper: Child,
    config: PathBuf,
    /// A socket that takes commands.
    socket: PathBuf,
}

impl HaProxy {
    fn start(primary: u16, standby: u16) -> Self {
        let port = free_port();
        let local = |port: u16| format!("127.0.0.1:{port}");
        // Not in the temporary folder: on a Mac its path is too long for a socket.
        let socket = PathBuf::from(format!(
            "/tmp/dpl-haproxy-{}",
            uuid::Uuid::now_v7().simple()
        ));
        let config = include_str!("../../docs/haproxy.cfg")
            .replace("127.0.0.1:5432", &local(port))
            .replace("10.0.0.11:5432", &local(primary))
            .replace("10.0.0.12:5432", &local(standby))
            // Nothing listens there.
            .replace("10.0.0.13:5432", &local(free_port()))
            .replace("/run/haproxy/admin.sock", socket.to_str().unwrap());
        let path = socket.with_extension("cfg");
        std::fs::File::create(&path)
            .unwrap()
            .write_all(config.as_bytes())
            .unwrap();
        let keeper = Command::new("sh")
            .args([
                "-c",
                r#"haproxy -q -db -f "$1" & read -r _; kill $!; wait"#,
                "keeper",
            ])
            .arg(&path)
            // Debian keeps it off the PATH of users other than root.
            .env("PATH", std::env::var("PATH").unwrap() + ":/usr/sbin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            port,
            keeper,
            config: path,
            socket,
        }
    }

    /// Whether the health checks of this server succeed.
    async fn is_up(&self, server: &str) -> bool {
        let mut socket = UnixStream::connect(&self.socket).await.unwrap();
        let command = b"show servers state postgres\n";
        socket.write_all(command).await.unwrap();
        let mut states = String::new();
        socket.read_to_string(&mut states).await.unwrap();
        let of_server = states
            .lines()
            .find(|line| line.split(' ').nth(3) == Some(server));
        // The sixth column is the state; 2 means up.
        of_server.unwrap().split(' ').nth(5) == Some("2")
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        let _ = std::fs::remove_file(&self.config);
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A primary and its synchronous standby, each behind a wire that can be cut.
struct Pair {
    primary: Postgres,
    standby: Postgres,
    /// From `HAProxy` to the primary.
    to_service: Proxy,
    /// From the standby to the primary.
    to_standby: Proxy,
}

impl Pair {
    async fn start() -> Self {
        let primary = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
        execute(&primary, "CREATE ROLE haproxy LOGIN CONNECTION LIMIT 10").await;
        let to_service = Proxy::to(primary.port()).await;
        let to_standby = Proxy::to(primary.port()).await;
        let port = to_standby.port;
        let standby = tokio::task::spawn_blocking(move || Postgres::standby_of(port))
            .await
            .unwrap();
        // After the copy: once it is promoted, the standby must wait for no other server.
        execute(&primary, "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
        execute(&primary, "SELECT pg_reload_conf()").await;
        let pool = pool(&primary);
        eventually("the standby is synchronous", async || {
            sqlx::query_scalar::<_, i32>(
                "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'",
            )
            .fetch_optional(&pool)
            .await
            .unwrap()
        })
        .await;
        Self {
            primary,
            standby,
            to_service,
            to_standby,
        }
    }
}

fn pool(postgres: &Postgres) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(4);
    pool.connect_lazy(&postgres.url("postgres")).unwrap()
}

async fn execute(postgres: &Postgres, statement: &str) {
    // A promotion may take this long on a busy machine. The service's 30 s count from its end.
    within(Duration::from_mins(1), statement, async {
        let mut connection = PgConnection::connect(&postgres.url("postgres"))
            .await
            .unwrap();
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut connection)
            .await
            .unwrap();
    })
    .await;
}

/// All processes of a server, stopped. They continue when this is dropped, so that they can be ended.
struct Frozen(Vec<String>);

impl Frozen {
    async fn server(postgres: &Postgres) -> Self {
        let mut connection = PgConnection::connect(&postgres.url("postgres"))
            .await
            .unwrap();
        let first: String =
            sqlx::query_scalar("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)")
                .fetch_one(&mut connection)
                .await
                .unwrap();
        // The postmaster starts all others, so none is added from here on.
        let mut frozen = Self(vec![first]);
        frozen.signal("-STOP");
        let others: Vec<String> = sqlx::query_scalar(
            "SELECT pid::text FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        drop(connection);
        frozen.0.extend(others);
        frozen.signal("-STOP");
        frozen
    }

    fn signal(&self, signal: &str) {
        // Some may have exited.
        let _ = Command::new("kill")
            .arg(signal)
            .args(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

/// How a primary is lost.
enum Loss {
    Killed,
    Frozen,
    CutOff,
}

async fn nothing_is_lost_when_the_primary_is(loss: Loss) {
    let Pair {
        primary,
        standby,
        to_service,
        to_standby,
    } = Pair::start().await;
    let haproxy = HaProxy::start(to_service.port, standby.port());
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", haproxy.port);
    eventually("HAProxy leads to the primary", async || {
        PgConnection::connect(&url).await.ok()
    })
    .await;
    let app = TestApp::quick_on(url.clone(), &[]).await;
    let told = Acknowledged::default();

    let failover = async {
        eventually("the load is running", async || {
            (told.count() >= 20).then_some(())
        })
        .await;
        let mut primary = primary;
        let frozen = match loss {
            Loss::Killed => {
                tokio::task::block_in_place(|| primary.stop());
                None
            }
            Loss::Frozen => Some(Frozen::server(&primary).await),
            Loss::CutOff => {
                to_service.cut();
                to_standby.cut();
                None
            }
        };
        execute(&standby, "SELECT pg_promote()").await;
        let promoted = Instant::now();
        let more_is_acknowledged = async || {
            let before = told.count();
            eventually_within(
                LIMIT,
                "links and webhooks are acknowledged again",
                async || (told.count() >= before + 8).then_some(()),
            )
            .await;
        };
        more_is_acknowledged().await;
        let left = LIMIT.saturating_sub(promoted.elapsed());
        eventually_within(left, "it is ready", async || {
            (app.get("/readyz").await.status == 200).then_some(())
        })
        .await;
        println!("serving again {:?} after the promotion", promoted.elapsed());
        if let Some(frozen) = frozen {
            // The old primary comes back and accepts writes, because it hasn't been fenced.
            drop(frozen);
            eventually("HAProxy sees the old primary up", async || {
                haproxy.is_up("pg1").await.then_some(())
            })
            .await;
            for _ in 0..5 {
                let mut connection = PgConnection::connect(&url).await.unwrap();
                let port: String = sqlx::query_scalar("SHOW port")
                    .fetch_one(&mut connection)
                    .await
                    .unwrap();
                assert_eq!(
                    port,
                    standby.port().to_string(),
                    "HAProxy stays with the promoted server"
                );
            }
            more_is_acknowledged().await;
            app.get("/readyz").await.expect(200);
        }
        told.enough.store(true, Ordering::Relaxed);
        primary
    };
    let (_primary, _) = tokio::join!(failover, join_all((0..4).map(|_| load(&app, &told))));
    let app = app.with_database(&standby.url("postgres"));
    nothing_is_lost(&app, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_from_a_killed_primary_loses_nothing_acknowledged() {
    nothing_is_lost_when_the_primary_is(Loss::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_from_a_frozen_primary_loses_nothing_acknowledged() {
    nothing_is_lost_when_the_primary_is(Loss::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_from_an_unreachable_primary_loses_nothing_acknowledged() {
    nothing_is_lost_when_the_primary_is(Loss::CutOff).await;
}

/// Waits until a transaction of the service waits for the standby.
async fn wait_for_the_standby(primary: &PgPool) {
    let limit = Duration::from_mins(1);
    eventually_within(limit, "a commit waits for the standby", async || {
        sqlx::query_scalar::<_, i32>(
            "SELECT pid FROM pg_stat_activity
             WHERE wait_event = 'SyncRep' AND application_name = 'dojo-payment-links'",
        )
        .fetch_optional(primary)
        .await
        .unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_fails_while_commits_wait_for_the_standby() {
    // Kept whole, because the wires are cut when they are dropped.
    let pair = Pair::start().await;
    let Pair {
        primary, standby, ..
    } = &pair;
    // A role that sees no more than the service's role may.
    execute(
        primary,
        "CREATE ROLE service LOGIN; ALTER DATABASE postgres OWNER TO service;
         ALTER SCHEMA public OWNER TO service",
    )
    .await;
    let url = primary.url("postgres").replace("postgres@", "service@");
    let app = TestApp::on(url, &[]).await;
    app.get("/readyz").await.expect(200);
    let receiver: i32 = sqlx::query_scalar("SELECT pid FROM pg_stat_wal_receiver")
        .fetch_one(&pool(standby))
        .await
        .unwrap();
    let receiver = Frozen(vec![receiver.to_string()]);
    receiver.signal("-STOP");
    let body = ten_pounds("Order 1");
    let creating = app.create(&body);
    let waiting = async {
        eventually("it says why it is not ready", async || {
            let response = app.get("/readyz").await;
            let says_why = response.text.contains("wait for a synchronous standby");
            (response.status == 503 && says_why).then_some(())
        })
        .await;
        drop(receiver);
        eventually("it is ready again", async || {
            (app.get("/readyz").await.status == 200).then_some(())
        })
        .await;
    };
    tokio::join!(creating, waiting);
    app.create(&body).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_without_its_standbys_acknowledges_nothing() {
    // What docs/operations.md says to do before a promotion, in case the old primary can't be fenced.
    let pair = Pair::start().await;
    let Pair {
        primary, standby, ..
    } = &pair;
    execute(primary, "CREATE TABLE payments (id integer)").await;
    execute(standby, "ALTER SYSTEM SET primary_conninfo = ''").await;
    execute(standby, "SELECT pg_reload_conf()").await;
    let on_standby = pool(standby);
    eventually("the standby is detached", async || {
        let receivers: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_stat_wal_receiver")
            .fetch_one(&on_standby)
            .await
            .unwrap();
        (receivers == 0).then_some(())
    })
    .await;
    let on_primary = pool(primary);
    let write = tokio::spawn({
        let pool = on_primary.clone();
        async move {
            sqlx::query("INSERT INTO payments VALUES (1)")
                .execute(&pool)
                .await
        }
    });
    eventually("the commit waits", async || {
        sqlx::query_scalar::<_, i32>(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
        )
        .fetch_optional(&on_primary)
        .await
        .unwrap()
    })
    .await;
    execute(standby, "SELECT pg_promote()").await;
    let there: i64 = sqlx::query_scalar("SELECT count(*) FROM payments")
        .fetch_one(&on_standby)
        .await
        .unwrap();
    assert_eq!(there, 0);
    assert!(!write.is_finished(), "the write has not been acknowledged");
    write.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_data_is_on_the_standby_whatever_the_server_default_is() {
    // Kept whole, because the wires are cut when they are dropped.
    let pair = Pair::start().await;
    let Pair {
        primary, standby, ..
    } = &pair;
    execute(
        primary,
        "ALTER DATABASE postgres SET synchronous_commit = off",
    )
    .await;
    let app = TestApp::on(primary.url("postgres"), &[]).await;
    let link = app.created().await;
    let webhook = |id: &str| {
        json!({"id": id, "event": "payment_intent.status_updated",
            "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Created"}})
        .to_string()
    };

    // On the standby's disk.
    let on_primary = pool(primary);
    let receiver: i32 = sqlx::query_scalar("SELECT pid FROM pg_stat_wal_receiver")
        .fetch_one(&pool(standby))
        .await
        .unwrap();
    let receiver = Frozen(vec![receiver.to_string()]);
    receiver.signal("-STOP");
    let event = webhook("evt_1");
    let delivering = async { app.deliver(&event).await };
    let waiting = async {
        wait_for_the_standby(&on_primary).await;
        drop(receiver);
    };
    let (answer, ()) = tokio::join!(delivering, waiting);
    answer.expect(204);

    // Visible on the standby, if the server's default requires that.
    // Committed before the connections end, or new ones would still have the old setting.
    execute(
        primary,
        "ALTER DATABASE postgres SET synchronous_commit = remote_apply",
    )
    .await;
    execute(
        primary,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'dojo-payment-links'",
    )
    .await;
    app.get("/readyz").await;
    eventually("the service is connected again", async || {
        (app.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    execute(standby, "SELECT pg_wal_replay_pause()").await;
    let event = webhook("evt_2");
    // Sent again like Dojo does, because the service may not have noticed yet that a connection has ended.
    let delivering = eventually("the webhook is stored", async || {
        let answer = app.deliver(&event).await;
        (answer.status == 204).then_some(())
    });
    let waiting = async {
        wait_for_the_standby(&on_primary).await;
        execute(standby, "SELECT pg_wal_replay_resume()").await;
    };
    tokio::join!(delivering, waiting);
    let kept: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM webhook_events WHERE dedup_key IN ('evt_1', 'evt_2')",
    )
    .fetch_one(&pool(standby))
    .await
    .unwrap();
    assert_eq!(kept, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_connected_to_a_standby_finds_the_primary_without_a_restart() {
    // Kept whole, because the wires are cut when they are dropped.
    let pair = Pair::start().await;
    let Pair {
        primary, standby, ..
    } = &pair;
    let proxy = Proxy::to(primary.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port);
    let app = TestApp::on(url, &[]).await;
    let link = app.created().await;
    // The address leads to a standby for a while, as it may during a failover.
    proxy.lead_to(standby.port());
    execute(
        primary,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'dojo-payment-links'",
    )
    .await;
    eventually("/readyz reports the standby", async || {
        let answer = app.get("/readyz").await;
        (answer.status == 503 && answer.text.contains("read-only")).then_some(())
    })
    .await;
    app.create(&ten_pounds("Order 2"))
        .await
        .problem(503, "database-unavailable");
    app.link(&link["id"]).await;

    // The connections to the standby stay open.
    proxy.lead_to(primary.port());
    eventually_within(Duration::from_secs(5), "it is ready", async || {
        (app.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    app.create(&ten_pounds("Order 2")).await.expect(201);
}
