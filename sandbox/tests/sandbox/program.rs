//! The sandbox as a program.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use crate::support::eventually;

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
