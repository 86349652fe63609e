//! Pages of the documentation that are made from the code.

use std::{fmt::Write as _, path::Path};

use clap::CommandFactory as _;

use super::Cli;

/// Compares a page in `docs/` with what the code says, or writes it if `FAREBOX_BLESS` is set.
pub(crate) fn check_page(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    if crate::system::environment("FAREBOX_BLESS").is_some() {
        std::fs::write(&path, page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/{name} is stale; run FAREBOX_BLESS=1 cargo test -p farebox");
}

const INTRO: &str = "# The command line

Made from the code by `FAREBOX_BLESS=1 cargo test -p farebox`; do not edit.

Exit codes: 0 done; 1 it could not be done, or the answer is no (`check` found a fault, `price` no route); 2 the command line is
wrong. `farebox pay` has more, see there. Results go to standard output, messages and logs to standard error.
";

#[test]
fn the_command_line_page_is_up_to_date() {
    let mut page = INTRO.to_owned();
    // Wide and plain, whatever the terminal of the test: a page has no columns.
    let mut root = Cli::command().term_width(100);
    root.build();
    let mut commands = vec![(root.get_name().to_owned(), root.clone())];
    let subcommands = |command: &clap::Command| {
        command.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect::<Vec<_>>()
    };
    for command in subcommands(&root) {
        let name = format!("farebox {}", command.get_name());
        let inner = subcommands(&command).into_iter().map(|inner| (format!("{name} {}", inner.get_name()), inner));
        let inner: Vec<_> = inner.map(|(name, inner)| (name, inner.term_width(100))).collect();
        commands.push((name, command.term_width(100)));
        commands.extend(inner);
    }
    for (name, mut command) in commands {
        let help = command.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        write!(page, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end()).unwrap();
    }
    check_page("cli.md", &page);
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}
