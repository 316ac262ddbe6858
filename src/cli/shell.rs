//! What a shell needs of the command line: completions and manual pages, made from the commands
//! themselves.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

/// The program's name, in file names and in what the shell completes.
const PROGRAM: &str = "voicebot";

#[derive(Debug, Args)]
pub(super) struct CompletionsArguments {
    /// The shell that is to complete the commands
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArguments {
    /// Writes a page for each command into this folder, which is made if it is not there;
    /// without it the program's own page goes to the terminal
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Writes the completions to `out`.
pub(super) fn completions(
    arguments: &CompletionsArguments,
    mut command: Command,
    out: &mut dyn Write,
) -> io::Result<()> {
    // Into memory first: the generator panics when a terminal goes away.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, PROGRAM, &mut script);
    out.write_all(&script)
}

/// Writes the manual: to `out`, or one page a command into the folder that is asked for.
///
/// # Errors
///
/// A folder that cannot be made or written to, with its path.
pub(super) fn manual(
    arguments: &ManArguments,
    command: Command,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Some(folder) = &arguments.dir else {
        return clap_mangen::Man::new(command).render(out);
    };
    pages_into(folder, command)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))
}

fn pages_into(folder: &Path, command: Command) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Arguments;

    /// The commands that a user may type.
    fn commands() -> Vec<String> {
        let command = Arguments::command();
        let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
        shown.map(|it| it.get_name().to_owned()).collect()
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [
            Shell::Bash,
            Shell::Elvish,
            Shell::Fish,
            Shell::PowerShell,
            Shell::Zsh,
        ] {
            let mut script = Vec::new();
            completions(
                &CompletionsArguments { shell },
                Arguments::command(),
                &mut script,
            )
            .expect("it is written");
            let script = String::from_utf8(script).expect("text");
            for command in commands() {
                assert!(script.contains(&command), "{shell}: {command}");
            }
        }
    }

    #[test]
    fn each_command_has_a_page_and_a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("man");
        let arguments = |dir: &Path| ManArguments {
            dir: Some(dir.to_owned()),
        };
        manual(&arguments(&dir), Arguments::command(), &mut io::sink()).expect("pages");
        for command in commands() {
            assert!(
                dir.join(format!("voicebot-{command}.1")).is_file(),
                "{command}"
            );
        }

        let below_a_file = dir.join("voicebot.1/man");
        let error = manual(
            &arguments(&below_a_file),
            Arguments::command(),
            &mut io::sink(),
        );
        let error = error.expect_err("no folder").to_string();
        assert!(error.contains("voicebot.1/man"), "{error}");
    }
}
