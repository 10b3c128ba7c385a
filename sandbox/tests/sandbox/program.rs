//! The sandbox as a program.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::support::eventually;

#[test]
fn a_wrong_setting_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    for (setting, value, words) in [
        (
            "SANDBOX_LISTEN_ADDR",
            "foo",
            "SANDBOX_LISTEN_ADDR must be an IP address and a port such as 127.0.0.1:9400",
        ),
        (
            "SANDBOX_LISTEN_ADDR",
            &taken,
            &format!("cannot listen on {taken}: "),
        ),
        (
            "SANDBOX_WEBHOOK_URL",
            "foo",
            "SANDBOX_WEBHOOK_URL must be an http or https URL",
        ),
        (
            "SANDBOX_PUBLIC_URL",
            "localhost:9400",
            "SANDBOX_PUBLIC_URL must be an http or https URL",
        ),
        ("SANDBOX_SEED", "x", "SANDBOX_SEED must be a whole number"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_dojo-sandbox"))
            .env("SANDBOX_LISTEN_ADDR", "127.0.0.1:0")
            .env(setting, value)
            .stdin(Stdio::null())
            .output()
            .expect("the sandbox");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_log_in_a_file_has_no_color_codes() {
    let path = std::env::temp_dir().join(format!("dojo-sandbox-{}.log", std::process::id()));
    let mut program = Command::new(env!("CARGO_BIN_EXE_dojo-sandbox"))
        .env("SANDBOX_LISTEN_ADDR", "127.0.0.1:0")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .stdout(File::create(&path).expect("a file"))
        .spawn()
        .expect("the sandbox");
    let log = eventually("the sandbox listens", || async {
        let log = fs::read_to_string(&path).expect("the log");
        log.contains("listening").then_some(log)
    })
    .await;
    program.kill().expect("it runs");
    program.wait().expect("it ends");
    fs::remove_file(&path).expect("the log");
    assert!(!log.contains('\u{1b}'), "{log:?}");
}
