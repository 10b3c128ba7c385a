//! Linters accept `openapi.yaml`, and programs with clients that are generated from it work against a live service, as does
//! all code in `docs/guide.md`. See `tests/clients`.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::process::Command;

use crate::{
    commands::create_api_key,
    support::{API_KEY, TestApp, within},
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

#[test]
fn the_readme_shows_the_guide_and_lists_every_document() {
    let readme = include_str!("../../README.md");
    let guide = include_str!("../../docs/guide.md");
    let (_, use_it) = readme.split_once("## Use it").unwrap();
    let (_, block) = use_it.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    assert_eq!(block.lines().count(), 5, "{block}");
    for line in block.lines() {
        assert!(guide.contains(line), "docs/guide.md has no {line}");
    }
    for file in Path::new("docs").read_dir().unwrap() {
        let path = file.unwrap().path();
        let link = format!("]({})", path.display());
        assert!(
            path.extension().is_none_or(|end| end != "md") || readme.contains(&link),
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
