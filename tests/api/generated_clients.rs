//! Linters accept `openapi.yaml`, and programs with clients that are generated from it work against a live service, as does
//! all code in `docs/guide.md` and the commands in the README. See `tests/clients`.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::process::Command;

use crate::{
    accounts::Folder,
    commands::create_api_key,
    support::{API_KEY, TestApp, text, within},
};

/// Low enough for the programs to exceed it on purpose, and high enough for all else that they do.
const CLIENT_RATE: &str = "50";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs packages for Node and Python: script/test runs it"]
async fn linters_and_generated_clients_accept_the_document() {
    let app = TestApp::with(&[
        ("CLIENT_RATE", CLIENT_RATE),
        ("RUN_JOBS", "true"),
        ("CALLBACK_ALLOW", "127.0.0.1"),
    ])
    .await;
    let reader = create_api_key(&app, "reader", "links:read");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let run = Command::new(root.join("tests/clients/run.sh"))
        .current_dir(root)
        .env("BASE_URL", &app.service.url)
        .env("SANDBOX_URL", &app.sandbox.url)
        .env("API_KEY", API_KEY)
        .env("READ_KEY", reader)
        .env("CLIENT_RATE", CLIENT_RATE)
        .env("PROGRAM", env!("CARGO_BIN_EXE_dojo-payment-links"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status();
    let status = within(Duration::from_mins(15), "the clients end", run).await;
    assert!(status.unwrap().success(), "its output is above");
}

const README: &str = include_str!("../../README.md");

/// The commands in the README's section "Use it".
fn commands_in_the_readme() -> Vec<&'static str> {
    let (_, section) = README.split_once("\n## Use it\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let blocks = section.split("```sh\n").skip(1);
    blocks
        .map(|rest| rest.split_once("```").unwrap().0)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_in_the_readme_work_one_after_the_other() {
    let app = TestApp::start().await;
    let folder = Folder::new();
    let run = async |commands: &[&str]| {
        let run = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &commands.concat()])
            .current_dir(folder.path())
            .env("BASE_URL", &app.service.url)
            .env("SANDBOX_URL", &app.sandbox.url)
            .env("API_KEY", API_KEY)
            .output()
            .await
            .unwrap();
        let [printed, errors] = [run.stdout, run.stderr].map(|out| String::from_utf8(out).unwrap());
        assert!(run.status.success(), "{printed}{errors}");
        printed
    };
    let commands = commands_in_the_readme();
    let [settings, create, pay, read, refund] = commands[..] else {
        panic!("{commands:?}");
    };
    let created: Value = serde_json::from_str(&run(&[settings, create, pay]).await).unwrap();
    assert_eq!(created["status"], "Created");
    let url = text(&created["url"]);
    assert!(url.starts_with(&app.sandbox.url), "{url}");

    // The README says that it takes seconds.
    app.link_with_status(&created["id"], "Captured").await;
    app.read_until_confirmed(&created["id"]).await;
    let printed = run(&[settings, read, refund]).await;
    let (is_paid, refunded) = printed.split_once('\n').unwrap();
    assert_eq!(is_paid, "true");
    let refunded: Value = serde_json::from_str(refunded).unwrap();
    assert_eq!(refunded["operation"], "Succeeded");
    assert_eq!(refunded["refundedAmount"]["value"], 350);
}

#[test]
fn the_readme_shows_the_guide_and_lists_every_document() {
    let guide = include_str!("../../docs/guide.md");
    for line in commands_in_the_readme().concat().lines() {
        assert!(guide.contains(line), "docs/guide.md has no {line}");
    }
    for file in Path::new("docs").read_dir().unwrap() {
        let path = file.unwrap().path();
        let link = format!("]({})", path.display());
        assert!(
            path.extension().is_none_or(|end| end != "md") || README.contains(&link),
            "README.md doesn't list {}",
            path.display()
        );
    }
}

#[test]
fn the_guide_contains_the_example_in_rust() {
    let guide = include_str!("../../docs/guide.md");
    let example = include_str!("../../examples/guide.rs");
    assert!(
        guide.contains(&format!("```rust\n{example}```\n")),
        "docs/guide.md must contain examples/guide.rs as it is"
    );
}
