//! What `top` says in its panels.

use std::fmt::Write as _;

use crate::{
    command::suggest::nix_option,
    policy::{AnyRule, InstanceName, Invalid, PortRange, RuleProtocol, lease::LeaseRule},
    report::{
        caller::Caller,
        denial::{Line, LoggedDenial},
        human::local_time,
    },
};

/// The keys.
pub(super) const HELP: &str = "\
up, down, k, j   choose a denied destination or name; page keys go further
Esc              choose none
a                let it pass for an hour: shows the rule first, and asks
e                explain the verdict
w                who asked for it
n                its option of the NixOS module, onto the clipboard (OSC 52)
?                these keys
q, Ctrl-C        leave

Of a row: when it was denied last, the instance, what, why, and how often.
In a panel the arrows scroll, and any other key closes it.";

/// The keys, in a line.
pub(super) const KEYS: &str = "arrows choose  a allow 1h  e explain  w who  n NixOS option  ? keys  q leaves";

/// Who asked for what was denied.
pub(super) fn who(event: &LoggedDenial, times: u64) -> String {
    let LoggedDenial { time, instance, line } = event;
    let mut text = format!("instance  {instance}\ntimes     {times}, last {}\n", local_time(*time));
    let mut add = |what: &str, value: Option<String>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:<9} {}", value.as_deref().unwrap_or("not known"));
    };
    let (pid, comm, Caller { exe, via, cgroup }) = line.process();
    let uid = match line {
        Line::Flow(line) => (pid != 0).then_some(line.uid),
        Line::Question(line) => line.asker.uid,
    };
    add("process", (pid != 0).then(|| pid.to_string()));
    add("name", Some(comm.to_owned()).filter(|comm| !comm.is_empty()));
    add("user", uid.map(|uid| uid.to_string()));
    add("program", exe.clone());
    add("via", (!via.is_empty()).then(|| via.join(" < ")));
    // The unit's own is not written.
    cgroup.iter().for_each(|cgroup| add("cgroup", Some(cgroup.clone())));
    if let Line::Question(line) = line {
        add("question", Some(format!("{} {}", line.query, line.qtype)));
    }
    let _ = write!(text, "\n{line}");
    text
}

/// A rule as it will be for an hour, and what it opens.
pub(super) fn grant(instance: &str, rule: &LeaseRule) -> String {
    format!(
        "rule   {rule}\n\n{}\n\nIt is in force at once, for an hour, and for {instance} alone; `opencode-egress revoke {instance} {rule}` ends it.\nNo deny rule is passed, and the policy file stays as it is.\n\ny grants it, any other key does not",
        widens(rule.rule())
    )
}

/// What a rule opens, in words.
fn widens(rule: &AnyRule) -> String {
    let protocol = |protocol| match protocol {
        RuleProtocol::Tcp => "TCP",
        RuleProtocol::Udp => "UDP",
        RuleProtocol::Icmp => "ICMP",
        RuleProtocol::Any => "every protocol",
    };
    let ports = |ports: &[PortRange]| match ports {
        [] => String::new(),
        ports => format!(" to port {}", ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    match rule {
        AnyRule::Network(rule) => format!(
            "It opens {}{} of {}, whoever answers there: of an address, a rule cannot tell one server from another.",
            protocol(rule.protocol()),
            ports(rule.ports()),
            rule.cidr()
        ),
        AnyRule::Name(rule) => {
            let tls = match rule.tls() {
                true => "Connections must open TLS to that name.",
                false => {
                    "It is not looked at what is said there: other names at the same addresses are reached, too."
                }
            };
            let private = if rule.private() { " Private addresses count." } else { "" };
            format!(
                "It opens {}{} of whatever addresses `{}` has.{private} {tls}",
                protocol(rule.protocol()),
                ports(rule.ports()),
                rule.pattern()
            )
        }
    }
}

/// A rule as an option of the NixOS module.
///
/// # Errors
///
/// When the instance's name is none, as that of a daemon of another version may be.
pub(super) fn option(instance: &str, rule: AnyRule, attempts: u64) -> Result<String, String> {
    let name: InstanceName = instance.parse().map_err(|invalid: Invalid| invalid.to_string())?;
    Ok(nix_option(&name, rule, attempts))
}
