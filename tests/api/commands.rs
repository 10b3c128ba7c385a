//! The commands other than `serve`, and the settings of all commands.

use std::{
    io::Read,
    process::{Command, Output, Stdio},
};

use crate::support::{Service, TestApp, empty_database, new_database, program};

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// Runs a command that succeeds. Returns its standard output.
#[track_caller]
pub fn output_of(command: &mut Command) -> String {
    let output = run(command);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that fails. Returns its standard error.
#[track_caller]
pub fn error_of(command: &mut Command) -> String {
    let output = run(command);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// The command `api-keys` on this database.
pub fn api_keys(database_url: &str) -> Command {
    let mut command = program();
    command.arg("api-keys").env("DATABASE_URL", database_url);
    command
}

/// Creates an API key as an operator does.
pub fn create_api_key(app: &TestApp, name: &str, scopes: &str) -> String {
    let args = ["create", "--name", name, "--scopes", scopes];
    output_of(api_keys(&app.database_url).args(args))
        .trim()
        .to_owned()
}

/// Like [`create_api_key`], for a client that may use these accounts only.
pub fn create_limited_key(app: &TestApp, name: &str, scopes: &str, accounts: &str) -> String {
    let args = [
        "create",
        "--name",
        name,
        "--scopes",
        scopes,
        "--accounts",
        accounts,
    ];
    output_of(api_keys(&app.database_url).args(args))
        .trim()
        .to_owned()
}

/// Revokes a client's API keys as an operator does.
pub fn revoke_api_key(app: &TestApp, name: &str) {
    output_of(api_keys(&app.database_url).args(["revoke", "--name", name]));
}

#[tokio::test(flavor = "multi_thread")]
async fn api_keys_are_created_listed_and_revoked_and_only_hashes_are_stored() {
    let app = TestApp::start().await;
    let key = create_api_key(&app, "orders", "links:read,links:write");
    assert!(key.starts_with("dpl_") && key.len() == 68, "{key}");

    let database = &app.database_url;
    let again =
        error_of(api_keys(database).args(["create", "--name", "orders", "--scopes", "links:read"]));
    assert!(again.contains("already"), "{again}");
    let unknown =
        error_of(api_keys(database).args(["create", "--name", "x", "--scopes", "links:all"]));
    assert!(unknown.contains("payments:manage"), "{unknown}");
    let nameless =
        error_of(api_keys(database).args(["create", "--name", " ", "--scopes", "links:read"]));
    assert!(nameless.contains("name"), "{nameless}");
    let two_lines =
        error_of(api_keys(database).args(["create", "--name", "x\ny", "--scopes", "links:read"]));
    assert!(two_lines.contains("control characters"), "{two_lines}");
    let person = ["create", "--name", "console:ann", "--scopes", "links:read"];
    let person = error_of(api_keys(database).args(person));
    assert!(person.contains("must not begin with console:"), "{person}");

    let listed = output_of(api_keys(database).arg("list"));
    assert!(
        listed.contains("orders\tlinks:read,links:write\t"),
        "{listed}"
    );
    assert!(!listed.contains(&key));
    let dump: Vec<String> = sqlx::query_scalar("SELECT api_keys::text FROM api_keys")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    assert!(!dump.concat().contains(&key));

    let revoked = run(api_keys(database).args(["revoke", "--name", "orders"]));
    assert_eq!(
        String::from_utf8(revoked.stderr).unwrap(),
        "All API keys of client \"orders\" are rejected from now on.\n"
    );
    assert!(output_of(api_keys(database).arg("list")).contains("revoked"));
    let gone = error_of(api_keys(database).args(["revoke", "--name", "orders"]));
    assert!(gone.contains("has no active key"), "{gone}");
    assert_ne!(create_api_key(&app, "orders", "links:read"), key);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_key_that_was_revoked_or_belongs_to_another_client_prevents_the_start() {
    let app = TestApp::start().await;
    let serve = |key: &str| {
        let mut serve = program();
        serve
            .arg("serve")
            .env("DATABASE_URL", &app.database_url)
            .env("DOJO_API_KEY", "sk_sandbox_1")
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("BOOTSTRAP_API_KEY", key);
        error_of(&mut serve)
    };
    let reader = create_api_key(&app, "reader", "links:read");
    assert!(serve(&reader).contains("BOOTSTRAP_API_KEY is the key of another client"));
    revoke_api_key(&app, "bootstrap");
    assert!(serve(crate::support::API_KEY).contains("BOOTSTRAP_API_KEY was revoked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sandbox_and_production_links_never_share_a_database() {
    // Nobody listens at this address, so nothing real can be requested.
    let serve = |database: &str, key: &str| {
        let mut serve = program();
        serve
            .arg("serve")
            .env("DATABASE_URL", database)
            .env("DOJO_API_KEY", key)
            .env("DOJO_API_URL", "https://127.0.0.1:9")
            .env("LISTEN_ADDR", "127.0.0.1:0");
        serve
    };
    let app = TestApp::start().await;
    app.created().await;
    let error = error_of(&mut serve(&app.database_url, "sk_prod_1"));
    assert!(
        error.contains(
            "DOJO_API_KEY configures production, but the database contains sandbox links"
        ),
        "{error}"
    );

    let real = new_database().await;
    let service = Service::start(
        &real,
        "https://127.0.0.1:9",
        &[("DOJO_API_KEY", "sk_prod_1")],
    )
    .await;
    let error = error_of(&mut serve(&real, "sk_sandbox_1"));
    assert!(
        error.contains(
            "DOJO_API_KEY configures sandbox, but the database contains production links"
        ),
        "{error}"
    );
    drop(service);

    // The database doesn't allow it by hand either.
    let moved = sqlx::query("UPDATE payment_links SET environment = 'production'");
    assert!(
        moved
            .execute(&app.pool)
            .await
            .unwrap_err()
            .to_string()
            .contains("payment_links_environment")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_can_run_again_and_in_several_processes_at_once() {
    let database = empty_database().await;
    let migrate = || {
        let mut migrate = program();
        migrate.arg("migrate").env("DATABASE_URL", &database);
        migrate.stderr(Stdio::piped());
        migrate
    };
    let runs: Vec<_> = (0..4).map(|_| migrate().spawn().unwrap()).collect();
    let runs = runs.into_iter().map(|run| run.wait_with_output().unwrap());
    let said: Vec<_> = runs
        .map(|run| {
            let said = String::from_utf8(run.stderr).unwrap();
            assert!(run.status.success(), "{said}");
            said
        })
        .collect();
    let count = std::fs::read_dir("migrations").unwrap().count();
    let newest = std::fs::read_dir("migrations").unwrap().map(|file| {
        let name = file.unwrap().file_name().into_string().unwrap();
        name.split('_').next().unwrap().parse::<i64>().unwrap()
    });
    let up_to_date = format!("up to date (version {}).", newest.max().unwrap());
    // Exactly one of them has applied them.
    let applied = format!("Applied {count} migrations. The database is {up_to_date}");
    let already = format!("The database is already {up_to_date}");
    let saying = |words: &str| said.iter().filter(|said| said.contains(words)).count();
    assert_eq!((saying(&applied), saying(&already)), (1, 3), "{said:?}");

    let again = run(&mut migrate());
    assert!(again.status.success());
    let said = String::from_utf8(again.stderr).unwrap();
    assert_eq!(said, format!("{already}\n"));
}

/// Runs a command whose reader closes the pipe at once.
fn without_reader(command: &mut Command) -> Output {
    let (stdout, stderr) = (Stdio::piped(), Stdio::piped());
    let mut child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
    drop(child.stdout.take());
    let mut error = Vec::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_end(&mut error).unwrap();
    Output {
        status: child.wait().unwrap(),
        stdout: Vec::new(),
        stderr: error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_quietly_if_the_reader_of_its_output_closes_the_pipe() {
    let app = TestApp::start().await;
    let quiet = |command: &mut Command, code| {
        let Output { status, stderr, .. } = without_reader(command);
        assert_eq!(String::from_utf8(stderr).unwrap(), "");
        assert_eq!(status.code(), Some(code));
    };
    quiet(program().arg("openapi"), 0);
    quiet(program().args(["openapi", "--version", "3.0"]), 0);
    quiet(api_keys(&app.database_url).arg("list"), 0);
    // The exit code of `check` says what it found.
    quiet(program().arg("check"), 1);

    // A key that nobody has read is lost.
    let arguments = ["create", "--name", "lost", "--scopes", "links:read"];
    let lost = without_reader(api_keys(&app.database_url).args(arguments));
    let error = String::from_utf8(lost.stderr).unwrap();
    assert!(
        error.contains("create another key with api-keys rotate"),
        "{error}"
    );
    assert!(
        !error.contains("panicked") && !error.contains("dpl_"),
        "{error}"
    );
    assert_eq!(lost.status.code(), Some(1));
}

#[test]
fn help_lists_every_setting_with_its_variable_and_default() {
    let help = output_of(program().args(["serve", "--help"]));
    for setting in [
        "[env: LISTEN_ADDR=]",
        "[default: 0.0.0.0:8080]",
        "[env: PUBLIC_LISTEN_ADDR=]",
        "[env: PUBLIC_URL=]",
        "[env: OTEL_EXPORTER_OTLP_ENDPOINT=]",
        "[env: CLIENT_RATE=]",
        "[default: 200]",
        "[env: DATABASE_URL]",
        "[env: DATABASE_URL_FILE=]",
        "[env: DATABASE_MAX_CONNECTIONS=]",
        "[env: DOJO_API_KEY]",
        "[env: DOJO_API_KEY_FILE=]",
        "[default: https://api.dojo.tech]",
        "[default: 2026-02-27]",
        "[default: https://pay.dojo.tech/checkout]",
        "[default: payment-links]",
        "[env: DOJO_TIMEOUT=]",
        "[env: DOJO_WEBHOOK_SECRETS]",
        "[env: DOJO_WEBHOOK_SECRETS_FILE=]",
        "[env: DOJO_ACCOUNTS_FILE=]",
        "[env: BOOTSTRAP_API_KEY]",
        "[env: LOG_FORMAT=]",
        "[env: PRUNE_OLDER_THAN=]",
        "[env: PRUNE_WEBHOOKS_OLDER_THAN=]",
        "[env: PRUNE_EVENTS_OLDER_THAN=]",
        "[env: PRUNE_MESSAGES_OLDER_THAN=]",
        "[env: WEBHOOK_BODIES_OLDER_THAN=]",
        "[env: STORED_RESPONSES_OLDER_THAN=]",
        "[default: 180d]",
        "[env: ERASE_OLDER_THAN=]",
        "[env: PERSONAL_METADATA=]",
        "[env: BOOKS_METADATA=]",
        "[env: CONSOLE_LISTEN_ADDR=]",
        "[env: CONSOLE_URL=]",
        "[env: CONSOLE_SESSION_IDLE=]",
        "[env: CONSOLE_SESSION_MAX=]",
        "[env: CONSOLE_APPROVAL_LIMIT=]",
        "[env: CONSOLE_APPROVAL_EXPIRY=]",
        "[env: CONSOLE_PROXY_ADDRESSES=]",
        "[env: CONSOLE_PROXY_USER_HEADER=]",
        "[env: CONSOLE_PROXY_GROUPS_HEADER=]",
        "[env: CONSOLE_GROUP_SCOPES=]",
        "[env: CONSOLE_GROUP_ACCOUNTS=]",
    ] {
        assert!(help.contains(setting), "{setting} is missing from\n{help}");
    }
}

/// The help of a command and of all commands below it.
fn helps(command: &[&str]) -> Vec<String> {
    let help = output_of(program().args(command).arg("--help"));
    let below = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let below = below.split("\n\n").next().unwrap();
    let names = below
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help");
    let further = names.flat_map(|name| helps(&[command, &[name]].concat()));
    let mut all: Vec<_> = further.collect();
    all.push(help.clone());
    all
}

#[test]
fn help_says_what_a_value_is_and_does_not_repeat_the_name_of_its_flag() {
    let all = helps(&[]);
    assert!(all.len() > 15, "{} commands", all.len());
    for help in all {
        for line in help.lines() {
            let values = line.split('<').skip(1);
            let mut values = values.filter_map(|value| value.split('>').next());
            // Email addresses are in angle brackets, too.
            let is_repeated =
                values.any(|value| value.chars().all(|c| c.is_lowercase() || c == '-'));
            assert!(!is_repeated, "{line:?} in\n{help}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_list_says_so_and_prints_nothing() {
    let database = new_database().await;
    for (command, words) in [
        (
            ["operations", "unconfirmed"],
            "No operation is Unconfirmed.\n",
        ),
        (["api-keys", "list"], "There is no API key.\n"),
        (
            ["callback-endpoints", "list"],
            "There is no callback endpoint.\n",
        ),
    ] {
        let listed = run(program().args(command).env("DATABASE_URL", &database));
        let [stdout, stderr] =
            [listed.stdout, listed.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(listed.status.success(), "{stderr}");
        assert_eq!((&*stdout, &*stderr), ("", words));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_prevents_the_start_and_is_named_without_any_secret() {
    let database = new_database().await;
    let settings = [
        ("DATABASE_URL", database.as_str()),
        ("DOJO_API_KEY", "sk_sandbox_1"),
        ("LISTEN_ADDR", "127.0.0.1:0"),
    ];
    for (name, value) in [
        ("DOJO_API_KEY", ""),
        ("DOJO_API_KEY", "pk_hush_hush"),
        ("DOJO_API_KEY", "sk_sandbox_hush\nhush"),
        ("DOJO_API_KEY_FILE", "/nowhere"),
        ("DOJO_API_URL", "ftp://hush"),
        ("DOJO_CHECKOUT_URL", "hush"),
        ("DOJO_API_VERSION", "banana"),
        ("DOJO_TIMEOUT", "0s"),
        ("REQUEST_TIMEOUT", "60days"),
        ("DATABASE_STATEMENT_TIMEOUT", "21s"),
        ("DOJO_TIMEOUT", "10 parsecs"),
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "mysql://root:hush@localhost/x"),
        ("DATABASE_MAX_CONNECTIONS", "0"),
        ("BOOTSTRAP_API_KEY", "dpl_hush"),
        ("LISTEN_ADDR", "localhost"),
        ("PUBLIC_LISTEN_ADDR", "8081"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("LOG_FORMAT", "xml"),
        ("PRUNE_OLDER_THAN", "29d"),
        ("PRUNE_EVENTS_OLDER_THAN", "29d"),
        ("WEBHOOK_BODIES_OLDER_THAN", "29d"),
        ("ERASE_OLDER_THAN", "always"),
        ("LOG_FILTER", "=,="),
        ("SMTP_URL", "smtp://pay@hush"),
        ("DOJO_WEBHOOK_SECRETS", "whs_hush hush"),
    ] {
        let mut serve = program();
        serve.arg("serve").envs(settings).env(name, value);
        let error = error_of(&mut serve);
        let base = name.trim_end_matches("_FILE");
        let flag = name.to_lowercase().replace('_', "-");
        assert!(
            error.contains(base) || error.contains(&flag),
            "{name}={value}: {error}"
        );
        let is_secret = matches!(
            name,
            "DOJO_API_KEY"
                | "DATABASE_URL"
                | "BOOTSTRAP_API_KEY"
                | "SMTP_URL"
                | "DOJO_WEBHOOK_SECRETS"
        );
        if is_secret && !value.is_empty() {
            assert!(!error.contains("hush"), "{error}");
        }
    }

    let mut serve = program();
    let wrong = [("DOJO_TIMEOUT", "10 parsecs"), ("RUN_JOBS", "perhaps")];
    let error = error_of(serve.arg("serve").envs(settings).envs(wrong));
    for words in [
        "DOJO_TIMEOUT must be a duration such as ",
        "not \"10 parsecs\"",
        "RUN_JOBS must be true or false, not \"perhaps\"",
    ] {
        assert!(error.contains(words), "{words:?} is not in {error}");
    }
}

#[test]
fn everything_that_is_missing_or_wrong_is_named_at_once() {
    let nothing = error_of(program().arg("serve"));
    for setting in ["DATABASE_URL", "DOJO_API_KEY"] {
        let words = format!("error: {setting} is required: set it to ");
        assert!(nothing.contains(&words), "{words:?} is not in {nothing}");
    }

    let wrong = [
        ("LOG_FORMAT", "jsn"),
        ("RUN_JOBS", "yes"),
        ("DOJO_API_URL", "api.dojo.tech"),
        ("RECOVERY_SETTLE", "abc"),
        ("BOOTSTRAP_API_KEY", "dpl_hush"),
        // A secret in the wrong place.
        ("DOJO_CHECKOUT_URL", "sk_prod_hush"),
        ("DOJO_WEBHOOK_SECRETS", "whs_hush,,sc_hush"),
        ("SMTP_URL", "mail.example.com"),
        ("PUBLIC_URL", "pay.example.com"),
        ("BUSINESS_TIME_ZONE", "London time"),
    ];
    let error = error_of(program().arg("serve").envs(wrong));
    for line in [
        "error: LOG_FORMAT must be one of json, text, not \"jsn\"",
        "error: RUN_JOBS must be true or false, not \"yes\"",
        "error: DOJO_API_URL must be an http or https URL, not \"api.dojo.tech\"",
        "error: DOJO_CHECKOUT_URL must be an http or https URL\n",
        "error: RECOVERY_SETTLE must be a duration such as 500ms, 30s, 2m or 24h",
        "error: BOOTSTRAP_API_KEY must be dpl_ and ",
        "error: DATABASE_URL is required",
        "error: DOJO_API_KEY is required",
        "error: DOJO_WEBHOOK_SECRETS (account default) is wrong: entry 2 of 3 is empty; entry 3 of 3 begins with sc_: ",
        "error: SMTP_URL must be a URL such as ",
        "error: MAIL_FROM is required",
        "error: PUBLIC_URL must be an http or https URL, not \"pay.example.com\"",
        "error: BUSINESS_TIME_ZONE must be the name of a time zone such as Europe/London, not \"London time\"",
    ] {
        assert!(error.contains(line), "{line:?} is not in {error}");
    }
    assert!(!error.contains("hush"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_production_key_needs_an_encrypted_connection_to_dojo() {
    let database = new_database().await;
    for url in [
        "http://api.dojo.tech",
        "http://localhost:9400",
        "http://127.0.0.1:9400",
    ] {
        for command in ["serve", "check"] {
            let mut command_line = program();
            command_line
                .arg(command)
                .env("DATABASE_URL", &database)
                .env("DOJO_API_KEY", "sk_prod_hush")
                .env("DOJO_API_URL", url)
                .env("LISTEN_ADDR", "127.0.0.1:0");
            let output = run(&mut command_line);
            assert!(!output.status.success());
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(
                said.contains("DOJO_API_URL must be https, because a production key"),
                "{said}"
            );
            assert!(!said.contains("hush"), "{said}");
        }
    }
}

#[test]
fn a_value_that_looks_like_a_command_or_flag_is_a_value() {
    let arguments = ["create", "--name", "check", "--scopes", "check"];
    let error = error_of(program().arg("api-keys").args(arguments));
    let line = "error: --scopes must be one of links:read, links:write, links:send, payments:manage, \
                events:read, callbacks:manage, data:erase, not \"check\"";
    assert!(error.starts_with(line), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_setting_counts_as_not_set() {
    let none = [
        ("PRUNE_OLDER_THAN", ""),
        ("DOJO_ACCOUNTS_FILE", ""),
        ("DATABASE_URL_FILE", ""),
        ("DOJO_API_KEY_FILE", ""),
        ("DOJO_WEBHOOK_SECRETS_FILE", ""),
        ("BOOTSTRAP_API_KEY_FILE", ""),
    ];
    TestApp::with(&none).await.created().await;
}

#[test]
fn flags_and_variables_have_the_same_names() {
    let help = output_of(program().args(["serve", "--help"]));
    let (mut flag, mut flags) = ("", 0);
    for line in help.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("--") {
            flag = rest.split(' ').next().unwrap();
        }
        if let Some(rest) = line.strip_prefix("[env: ") {
            let variable = rest.split(['=', ']']).next().unwrap();
            assert_eq!(flag, variable.to_lowercase().replace('_', "-"));
            flags += 1;
        }
    }
    assert!(flags > 20, "{help}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_can_come_from_files() {
    let dir = std::env::temp_dir().join(format!("dpl-{}", uuid::Uuid::now_v7()));
    std::fs::create_dir(&dir).unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key = file("key", "sk_sandbox_test_5up3r53cr3t\n");
    let secrets = file("secrets", "\nwhs_old\nwhs_0123456789abcdef\n");
    let app = TestApp::with(&[
        ("DOJO_API_KEY", ""),
        ("DOJO_API_KEY_FILE", &key),
        ("DOJO_WEBHOOK_SECRETS", ""),
        ("DOJO_WEBHOOK_SECRETS_FILE", &secrets),
    ])
    .await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    std::fs::remove_dir_all(dir).unwrap();

    let both = [
        ("DOJO_API_KEY", "sk_sandbox_1"),
        ("DOJO_API_KEY_FILE", &key),
        ("DATABASE_URL", "postgres://x"),
    ];
    let error = error_of(program().arg("serve").envs(both));
    assert!(error.contains("DOJO_API_KEY_FILE"), "{error}");
}
