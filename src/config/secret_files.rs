//! Secrets from files: `NAME_FILE` names a file that contains the value of the setting `NAME`, as
//! container platforms mount secrets. A value in a file appears in no process list, no environment
//! dump and no `--help`.

use std::ffi::OsString;

use clap::Command;

use super::InvalidSetting;

/// Settings that are secret or contain a password: the flag's id and the variable.
const SECRETS: [(&str, &str); 4] = [
    ("redis_url", "RUSHGATE_REDIS_URL"),
    ("database_url", "RUSHGATE_DATABASE_URL"),
    ("amqp_url", "RUSHGATE_AMQP_URL"),
    ("jwt_secret", "RUSHGATE_JWT_SECRET"),
];

/// Sets the files' contents as defaults of the command line; flags override them.
pub fn read(command: Command) -> Result<Command, InvalidSetting> {
    read_from(command, |name| std::env::var_os(name))
}

fn read_from(
    mut command: Command,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, InvalidSetting> {
    for (id, name) in SECRETS {
        let Some(path) = variable(&format!("{name}_FILE")) else { continue };
        if variable(name).is_some() {
            return Err(InvalidSetting(format!(
                "{name} and {name}_FILE are both set: only one can be used, unset the other"
            )));
        }
        let bad = |what: &str| InvalidSetting(format!("{name}_FILE {}: {what}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|error| bad(&error.to_string()))?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(bad("the file is empty"));
        }
        // clap keeps defaults for the life of the process; there are four at most.
        command = give(command, id, text.to_owned().leak());
    }
    Ok(command)
}

/// Sets the default in every (sub)command that has the flag.
fn give(mut command: Command, id: &str, text: &'static str) -> Command {
    if command.get_arguments().any(|arg| arg.get_id() == id) {
        command = command
            .mut_arg(id, |arg| arg.default_value(text).hide_default_value(true).required(false));
    }
    let names: Vec<String> =
        command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names
        .iter()
        .fold(command, |command, name| command.mut_subcommand(name, |sub| give(sub, id, text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Serve;
    use clap::{Args, FromArgMatches};

    fn serve(files: &[(&str, &str)], args: &[&str]) -> Result<Serve, String> {
        let command = Serve::augment_args(Command::new("serve"));
        let variable =
            |name: &str| files.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        let command = read_from(command, variable).map_err(|error| error.to_string())?;
        let matches =
            command.try_get_matches_from([&["serve"], args].concat()).map_err(|e| e.to_string())?;
        Serve::from_arg_matches(&matches).map_err(|e| e.to_string())
    }

    fn file(text: &str) -> String {
        let path = std::env::temp_dir().join(format!("rushgate-secret-{}", uuid::Uuid::now_v7()));
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_secret_is_read_from_its_file_and_shown_nowhere() {
        let path = file("redis://:hunter2@redis:6379\n");
        let settings = serve(&[("RUSHGATE_REDIS_URL_FILE", &path)], &[]).unwrap();
        assert_eq!(settings.servers.redis_url, "redis://:hunter2@redis:6379");
        let help = serve(&[("RUSHGATE_REDIS_URL_FILE", &path)], &["--help"]).unwrap_err();
        assert!(help.contains("--redis-url") && !help.contains("hunter2"), "{help}");
        assert!(!format!("{settings:?}").contains("hunter2"));
        let flag = serve(&[("RUSHGATE_REDIS_URL_FILE", &path)], &["--redis-url", "redis://other"])
            .unwrap();
        assert_eq!(flag.servers.redis_url, "redis://other");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_cannot_stand_for_a_secret_is_refused() {
        let (empty, good) = (file("\n"), file("x"));
        let refused = |files: &[(&str, &str)]| serve(files, &[]).unwrap_err();
        assert!(refused(&[("RUSHGATE_JWT_SECRET_FILE", &empty)]).contains("is empty"));
        assert!(refused(&[("RUSHGATE_AMQP_URL_FILE", "/no/such/file")]).contains("/no/such/file"));
        let both = [("RUSHGATE_JWT_SECRET_FILE", good.as_str()), ("RUSHGATE_JWT_SECRET", "y")];
        assert!(refused(&both).contains("unset the other"));
        [empty, good].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}
