//! Parses the command line, and reports every value that is wrong at once.

use std::{error::Error, ffi::OsString};

use clap::{
    ArgMatches, CommandFactory, FromArgMatches,
    builder::{OsStringValueParser, Resettable},
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use dojo_payment_links::config::{ConfigError, Expected, Problem};

use super::{check::Format, command_line::Cli};

/// Why the command line can't be run.
pub(super) enum Failure {
    /// The command line is malformed, or asks for help.
    Usage(clap::Error),
    /// Values of settings are wrong.
    Settings {
        error: ConfigError,
        /// How to report it, if the command is `check`.
        check: Option<Format>,
    },
}

/// A value that clap can't parse.
struct WrongValue {
    /// The flag of its setting, without dashes.
    flag: String,
    /// What is wrong, as the text of a problem.
    text: String,
}

/// Parses the command line and the environment.
///
/// Clap stops at the first value that it can't parse. So that value is set aside and everything is parsed again, until
/// nothing is left to complain about.
pub(super) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Cli, Failure> {
    let arguments: Vec<_> = arguments.collect();
    let mut command = Cli::command();
    let mut wrong: Vec<WrongValue> = Vec::new();
    loop {
        let error = match command.clone().try_get_matches_from(&arguments) {
            Ok(matches) if wrong.is_empty() => {
                return Cli::from_arg_matches(&matches).map_err(Failure::Usage);
            }
            Ok(_) => break,
            Err(error) => error,
        };
        match WrongValue::find(&error) {
            // It was set aside before and still fails, so it has no value at all.
            Some(value) if wrong.iter().any(|known| known.flag == value.flag) => {
                return Err(Failure::Usage(error));
            }
            Some(value) => {
                command = set_aside(command, &value.flag);
                wrong.push(value);
            }
            None if wrong.is_empty() => return Err(Failure::Usage(error)),
            // Correct the values first. The next run reports this error.
            None => break,
        }
    }

    let matches = command
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(&arguments)
        .map_err(Failure::Usage)?;
    let mut error = ConfigError::default();
    for WrongValue { flag, text } in &wrong {
        error.add(setting(&command, &matches, flag), text);
    }
    let check = match matches.subcommand() {
        Some(("check", matches)) if matches.get_flag("json") => Some(Format::Json),
        Some(("check", _)) => Some(Format::Text),
        _ => None,
    };
    if let Ok(cli) = Cli::from_arg_matches(&matches) {
        for Problem { setting, text } in cli.command.wrong_settings().problems() {
            // A wrong value was set aside, so its setting may seem to be missing.
            let flag = setting.to_lowercase().replace('_', "-");
            if !wrong.iter().any(|value| value.flag == flag) {
                error.add(setting, text);
            }
        }
    }
    Err(Failure::Settings { error, check })
}

impl WrongValue {
    /// Returns `None` if the error isn't about the value of a flag.
    fn find(error: &clap::Error) -> Option<Self> {
        let string = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        // Clap names the argument as in `--log-format <FORMAT>`.
        let argument = string(ContextKind::InvalidArg)?;
        let flag = argument.split(' ').next()?.strip_prefix("--")?.to_owned();
        let value = string(ContextKind::InvalidValue).unwrap_or_default();
        let expected = match (error.kind(), error.get(ContextKind::ValidValue)) {
            (ErrorKind::InvalidValue, Some(ContextValue::Strings(words))) => {
                Expected::new(match words.as_slice() {
                    [] => "a value".to_owned(),
                    [one, other] if one == "true" => format!("{one} or {other}"),
                    words => format!("one of {}", words.join(", ")),
                })
            }
            (ErrorKind::InvalidValue, _) => Expected::new("a value"),
            (ErrorKind::ValueValidation, _) => {
                let source = error.source()?;
                match source.downcast_ref::<Expected>() {
                    Some(expected) => expected.clone(),
                    None => Expected::new(format!("valid ({source})")),
                }
            }
            _ => return None,
        };
        Some(Self {
            flag,
            text: expected.not(value),
        })
    }
}

/// The prefix of the argument that takes the place of one whose value is wrong.
const WRONG: &str = "wrong-";

/// Gives the argument its default value, and adds one that accepts the wrong value in its place.
fn set_aside(mut command: clap::Command, flag: &str) -> clap::Command {
    let mut substitute = None;
    command = command.mut_args(|arg| {
        if arg.get_long() != Some(flag) {
            return arg;
        }
        substitute = Some(
            arg.clone()
                .id(format!("{WRONG}{flag}"))
                .value_parser(OsStringValueParser::new()),
        );
        arg.long(format!("default-{flag}"))
            .env(Resettable::Reset)
            .required(false)
    });
    command
        .args(substitute)
        .mut_subcommands(|command| set_aside(command, flag))
}

/// The name by which a wrong value was given: the environment variable, or the flag.
fn setting(command: &clap::Command, matches: &ArgMatches, flag: &str) -> String {
    let id = format!("{WRONG}{flag}");
    for arg in command.get_arguments() {
        if arg.get_id() == id.as_str()
            && matches.value_source(&id) == Some(ValueSource::EnvVariable)
        {
            let variable = arg.get_env().unwrap_or_default();
            return variable.to_string_lossy().into_owned();
        }
    }
    match matches.subcommand() {
        Some((name, matches)) => match command.find_subcommand(name) {
            Some(command) => setting(command, matches, flag),
            None => format!("--{flag}"),
        },
        None => format!("--{flag}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(arguments: &[&str]) -> (Vec<String>, Option<Format>) {
        let arguments = ["dojo-payment-links"].iter().chain(arguments);
        match parse(arguments.map(OsString::from)) {
            Err(Failure::Settings { error, check }) => (
                error.problems().iter().map(ToString::to_string).collect(),
                check,
            ),
            Err(Failure::Usage(error)) => panic!("{error}"),
            Ok(cli) => panic!("{cli:?}"),
        }
    }

    #[test]
    fn a_flag_without_its_value_is_reported() {
        for (arguments, flag) in [
            (
                &["api-keys", "create", "--name", "a", "--scopes"][..],
                "--scopes",
            ),
            (&["serve", "--run-jobs"], "--run-jobs"),
            (&["serve", "--log-format", "x", "--run-jobs"], "--run-jobs"),
        ] {
            let arguments = ["dojo-payment-links"].iter().chain(arguments);
            let Err(Failure::Usage(error)) = parse(arguments.map(OsString::from)) else {
                panic!("{flag} needs a value");
            };
            let text = error.to_string();
            assert!(
                text.contains("a value is required") && text.contains(flag),
                "{text}"
            );
        }
    }

    #[test]
    fn a_setting_with_a_wrong_value_is_not_said_to_be_missing_as_well() {
        let server = ["--smtp-url", "smtp://mail.example.com"];
        let about_sender = |arguments: &[&str]| {
            let (problems, _) = failure(&[&["serve", "--page-rate=0"], arguments].concat());
            let about = |problem: &&String| {
                problem.starts_with("MAIL_FROM") || problem.starts_with("--mail-from")
            };
            problems.iter().filter(about).cloned().collect::<Vec<_>>()
        };
        let missing = about_sender(&server);
        assert!(
            missing.len() == 1 && missing[0].contains("is required"),
            "{missing:?}"
        );
        let wrong = about_sender(&[&server[..], &["--mail-from", "nobody"]].concat());
        assert!(
            wrong.len() == 1 && wrong[0].contains("not \"nobody\""),
            "{wrong:?}"
        );
    }

    #[test]
    fn a_value_that_looks_like_a_command_is_just_a_value() {
        let (problems, check) =
            failure(&["api-keys", "create", "--name", "check", "--scopes", "check"]);
        assert_eq!(check, None);
        assert_eq!(
            problems[0],
            "--scopes must be one of links:read, links:write, links:send, payments:manage, events:read, callbacks:manage, data:erase, not \"check\""
        );
        let (problems, check) = failure(&["check", "--json", "--log-format", "serve"]);
        assert_eq!(check, Some(Format::Json));
        assert_eq!(
            problems[0],
            "--log-format must be one of json, text, not \"serve\""
        );
    }
}
