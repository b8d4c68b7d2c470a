//! The commands that ask the daemon.

use std::{io::Write as _, time::Duration};

use anyhow::{Result, bail};

use crate::{
    command::{
        args::{ControlArgs, DetachArgs, EventsArgs, ExplainArgs, NamesArgs, ReadArgs},
        arguments,
        print::print_line,
    },
    control::{
        client::Client,
        request::{AddressTime, NameAddresses, Reply, Request},
    },
    report::{
        denial::LoggedDenial,
        human::{local_time, now},
        status::Status,
        view,
    },
};

/// How long the daemon may take for an answer; a reload of large policies takes the longest.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn ask(control: &ControlArgs, request: &Request) -> Result<Reply> {
    Ok(Client::ask(&control.socket, request, Duration::ZERO)?.reply(Some(PATIENCE))?)
}

pub(super) fn unexpected(reply: &Reply) -> anyhow::Error {
    anyhow::anyhow!("the daemon gave another answer than was asked for, it is of another version: {reply:?}")
}

/// The daemon's status.
pub(super) fn ask_status(control: &ControlArgs) -> Result<Status> {
    match ask(control, &Request::Status)? {
        Reply::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// Prints the status.
pub(super) fn status(args: &ReadArgs) -> Result<()> {
    let status = ask_status(&args.control)?;
    if args.json {
        return print_line(serde_json::to_string_pretty(&status)?);
    }
    Ok(write!(anstream::stdout(), "{}", view::text(&status, now()))?)
}

/// Prints the verdict on a flow, and why.
pub(super) fn explain(args: &ExplainArgs) -> Result<()> {
    let request = Request::Explain { instance: args.name.to_string(), destination: args.destination.clone() };
    match ask(&args.read.control, &request)? {
        Reply::Explained(explanation) if args.read.json => {
            print_line(serde_json::to_string_pretty(&explanation)?)
        }
        Reply::Explained(explanation) => print_line(explanation),
        other => Err(unexpected(&other)),
    }
}

/// Prints the names that are known to an instance.
pub(super) fn names(args: &NamesArgs) -> Result<()> {
    let names = match ask(&args.read.control, &Request::Names { instance: args.name.to_string() })? {
        Reply::Names(names) => names,
        other => return Err(unexpected(&other)),
    };
    if args.read.json {
        return print_line(serde_json::to_string_pretty(&names)?);
    }
    if names.is_empty() {
        eprintln!(
            "opencode-egress: no listed name was asked for yet, or the time of what answers brought is long over"
        );
    }
    for NameAddresses { name, addresses } in names {
        print_line(name)?;
        for AddressTime { address, seconds } in addresses {
            match seconds {
                0 => print_line(format_args!("  {address}  over, new flows are denied"))?,
                _ => print_line(format_args!("  {address}  {seconds} s left"))?,
            }
        }
    }
    Ok(())
}

/// Prints denials.
pub(super) fn events(args: &EventsArgs) -> Result<()> {
    let instance = args.name.as_ref().map(ToString::to_string);
    let request = Request::Events { instance, follow: args.follow, leases: true };
    let mut client = Client::ask(&args.read.control.socket, &request, Duration::ZERO)?;
    let timeout = (!args.follow).then_some(PATIENCE);
    loop {
        match client.reply(timeout)? {
            Reply::Event(event) if args.args => print_line(with_arguments(&event, args.read.json)?)?,
            Reply::Event(event) if args.read.json => print_line(serde_json::to_string(&event)?)?,
            Reply::Event(event) => print_line(event)?,
            Reply::Lease(event) if args.read.json => print_line(serde_json::to_string(&event)?)?,
            Reply::Lease(event) => {
                print_line(format_args!("{} {}: {event}", local_time(event.time), event.instance))?;
            }
            Reply::End => return Ok(()),
            other => return Err(unexpected(&other)),
        }
    }
}

/// A denial with the arguments of its process: `args="…"`, or `args=-` where that has ended.
fn with_arguments(event: &LoggedDenial, json: bool) -> Result<String> {
    let arguments = arguments::of(event);
    if json {
        let mut event = serde_json::to_value(event)?;
        event["args"] = arguments.into();
        return Ok(event.to_string());
    }
    Ok(match arguments {
        Some(arguments) => format!("{event} args=\"{}\"", arguments.join(" ")),
        None => format!("{event} args=-"),
    })
}

/// Has the daemon apply the policy file, and prints what changed.
pub(super) fn reload(args: &ControlArgs) -> Result<()> {
    match ask(args, &Request::Reload)? {
        Reply::Reloaded { changes, not_reset } => {
            if changes.is_empty() {
                print_line("nothing changed")?;
            }
            changes.iter().try_for_each(print_line)?;
            not_reset.iter().for_each(|what| eprintln!("opencode-egress: {what}"));
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

/// Has the daemon take an instance's links away.
pub(super) fn detach(args: &DetachArgs) -> Result<()> {
    match ask(&args.control, &Request::Detach { instance: args.name.to_string() })? {
        Reply::Detached { units } if units.is_empty() => {
            bail!("no unit of `{}` is confined; nothing to detach", args.name)
        }
        Reply::Detached { units } => {
            units.iter().try_for_each(|unit| print_line(format_args!("{unit} is no longer confined")))
        }
        other => Err(unexpected(&other)),
    }
}
