//! `why`: a confined process asks what it may reach, and what was refused to it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{args::WhyArgs, client::unexpected, exec::is_confined_by_exec, print::print_line},
    control::{
        client::{Client, ControlError},
        request::Reply,
    },
    report::why::Why,
};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Prints what the caller's instance may reach, and what was refused to it.
pub(super) fn why(args: &WhyArgs) -> Result<()> {
    if is_confined_by_exec() {
        bail!(
            "this runs under `opencode-egress exec`, which has no daemon to ask: what it refuses is printed to its stderr, and what it lets pass was said to it by --allow, --preset or --policy"
        );
    }
    let why = ask(&args.socket)?;
    if args.json {
        return print_line(serde_json::to_string_pretty(&why)?);
    }
    print_line(why)
}

fn ask(socket: &Path) -> Result<Why> {
    let asked = Client::connect(socket, Duration::ZERO).and_then(|mut client| client.reply(Some(PATIENCE)));
    match asked {
        Ok(Reply::Why(why)) => Ok(*why),
        Ok(other) => Err(unexpected(&other)),
        Err(error @ ControlError::NoDaemon { .. }) => Err(error).context(
            "nobody can say why now, and what is refused stays refused meanwhile; try again in a few seconds",
        ),
        Err(error) => Err(error.into()),
    }
}
