//! `check --against`: what of an instance's past a policy file would judge otherwise.

use std::{collections::BTreeSet, fmt, process::ExitCode};

use anyhow::{Context as _, Result};
use opencode_egress_common::{
    abi::PolicyHeader,
    decide::{Verdict, decide},
    reason::DropReason,
};
use serde::Serialize;

use crate::{
    command::{args::CheckArgs, print::print_line},
    policy::{
        InstanceName, Mode, Policy, PolicySet,
        compile::{CompileError, CompiledRules, compile},
        destination::Destination,
        explain::NAME_NOT_ALLOWED,
        may_bind, mode_name,
        name::DnsName,
        special::AddressKind,
        suggest::Tried,
    },
    report::{
        history::{self, History},
        human::local_time,
        tried::Said,
    },
};

/// It would refuse something that passed.
const REFUSES: u8 = 3;
/// It would only let pass what was refused.
const LETS_PASS: u8 = 4;

/// What a policy would judge otherwise.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Difference {
    instance: String,
    mode: &'static str,
    /// It passed, and would not.
    would_refuse: Vec<Judged>,
    /// It was refused, and would pass.
    would_let_pass: Vec<Judged>,
    /// How many names and destinations it judges as before.
    as_before: usize,
    /// How many were denied for what no rule for a destination says.
    beyond_rules: usize,
    /// Denials of which the journal has no line, for its limits.
    left_out: u64,
}

/// Something that is judged otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Judged {
    /// A name, or a destination.
    what: String,
    /// Of a destination: the name that brought it, or that its hello has.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Why it is denied, or was.
    reason: String,
    /// How often it was tried; nothing of a listed name.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u64>,
    /// When, and who.
    #[serde(flatten)]
    tried: Tried,
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, name, reason, attempts, tried } = self;
        write!(f, "{what}")?;
        name.iter().try_for_each(|name| write!(f, " ({name})"))?;
        write!(f, "  {reason}")?;
        match attempts {
            None => {}
            Some(1) => f.write_str(", once")?,
            Some(attempts) => write!(f, ", {attempts} times")?,
        }
        tried.programs().iter().try_for_each(|programs| write!(f, ", by {programs}"))?;
        tried.last.iter().try_for_each(|last| write!(f, ", last at {}", local_time(*last)))
    }
}

/// Compares, and says by the exit status what came of it.
pub(super) fn check(args: &CheckArgs, name: &InstanceName, set: &PolicySet) -> Result<ExitCode> {
    let policy = set.instance(name, &args.file)?;
    let history = history::read(name, &args.since)?;
    let judge = Judge::of(name, policy, set).with_context(|| format!("instance `{name}`"))?;
    let difference = compare(name, &judge, &history);
    if args.json {
        print_line(serde_json::to_string_pretty(&difference)?)?;
    } else {
        print(&difference, args)?;
    }
    difference.notes(&args.since).iter().for_each(|note| eprintln!("opencode-egress: {note}"));
    Ok(match (difference.would_refuse.is_empty(), difference.would_let_pass.is_empty()) {
        (false, _) => ExitCode::from(REFUSES),
        (true, false) => ExitCode::from(LETS_PASS),
        (true, true) => ExitCode::SUCCESS,
    })
}

fn print(difference: &Difference, args: &CheckArgs) -> Result<()> {
    let Difference { instance, mode, would_refuse, would_let_pass, as_before, beyond_rules, .. } = difference;
    let file = args.file.display();
    for (what, judged) in
        [("refuse what passed", would_refuse), ("let pass what was refused", would_let_pass)]
    {
        if !judged.is_empty() {
            print_line(format_args!("{instance}: {file} would {what}:"))?;
        }
        judged.iter().try_for_each(|judged| print_line(format_args!("  {judged}")))?;
    }
    let beyond = match beyond_rules {
        0 => String::new(),
        beyond => format!("; not judged by rules for destinations: {beyond}"),
    };
    print_line(format_args!(
        "{instance}: would refuse what passed: {}, would let pass what was refused: {}, as before: {as_before}{beyond}; mode {mode}",
        would_refuse.len(),
        would_let_pass.len()
    ))
}

/// A policy that judges a past.
struct Judge<'a> {
    policy: &'a Policy,
    header: PolicyHeader,
    rules: CompiledRules,
    /// The ports that other instances list.
    others: BTreeSet<u16>,
}

impl<'a> Judge<'a> {
    fn of(name: &InstanceName, policy: &'a Policy, set: &PolicySet) -> Result<Self, CompileError> {
        let compiled = compile(policy)?;
        let (header, rules) = (compiled.header, compiled.rules());
        Ok(Self { policy, header, rules, others: set.ports_of_others(name) })
    }
}

/// Judges an instance's past by a policy.
fn compare(name: &InstanceName, judge: &Judge<'_>, history: &History) -> Difference {
    let policy = judge.policy;
    let mut difference = Difference {
        instance: name.to_string(),
        mode: mode_name(policy.mode),
        left_out: history.left_out,
        ..Difference::default()
    };
    let audit = policy.mode == Mode::Audit;
    for name in &history.allowed {
        let denied = (!audit && !lists(policy, name)).then(|| NAME_NOT_ALLOWED.to_owned());
        let what = (name.clone(), None, NAME_NOT_ALLOWED.to_owned());
        difference.add(what, None, denied, (true, false));
    }
    for (name, said) in history.lines.questions() {
        let denied = (!audit && !lists(policy, name)).then(|| NAME_NOT_ALLOWED.to_owned());
        let what = (name.to_owned(), None, NAME_NOT_ALLOWED.to_owned());
        difference.add(what, Some(said), denied, said.both());
    }
    for ((destination, reason, name), said) in history.lines.flows() {
        let denied = match why_denied(judge, *destination, reason, name.as_deref()) {
            Some(denied) => denied.filter(|_| !audit),
            None => {
                difference.beyond_rules += 1;
                continue;
            }
        };
        let what = (destination.to_string(), name.clone(), reason.clone());
        difference.add(what, Some(said), denied, said.both());
    }
    difference
}

impl Difference {
    /// What to know of the past that it was judged by, a line each.
    fn notes(&self, since: &impl fmt::Display) -> Vec<String> {
        let Self { instance, would_refuse, would_let_pass, as_before, beyond_rules, left_out, .. } = self;
        let mut notes = vec![];
        if would_refuse.len() + would_let_pass.len() + as_before + beyond_rules == 0 {
            notes.push(format!(
                "the journal has nothing of {instance} since {since}; --since looks further back"
            ));
        }
        if *left_out > 0 {
            notes.push(format!("{left_out} denials since then are not in the journal, for its limits"));
        }
        notes
    }

    /// Adds something by what it would be denied for, if it would. It passed, or it was refused, or both: in audit mode and outside.
    fn add(
        &mut self,
        (what, name, before): (String, Option<String>, String),
        said: Option<&Said>,
        denied: Option<String>,
        (passed, refused): (bool, bool),
    ) {
        let judged = |reason: String| Judged {
            what,
            name,
            reason,
            attempts: said.map(|said| said.attempts),
            tried: said.map(|said| said.tried.clone()).unwrap_or_default(),
        };
        match denied {
            Some(reason) if passed => self.would_refuse.push(judged(reason)),
            None if refused => self.would_let_pass.push(judged(before)),
            _ => self.as_before += 1,
        }
    }
}

/// Why a policy denies what was denied for a reason, if it does. `None`: rules for destinations do not judge it.
fn why_denied(
    Judge { policy, header, rules, others }: &Judge<'_>,
    destination: Destination,
    reason: &str,
    name: Option<&str>,
) -> Option<Option<String>> {
    use DropReason::{
        BindNotListed, DenyRule, NameExpired, NotAllowed, PortNotAllowed, ProtocolNotAllowed,
        TlsNameNotAllowed,
    };
    let of = |reasons: &[DropReason]| reasons.iter().any(|known| known.name() == reason);
    if of(&[BindNotListed]) {
        return Some((!may_bind(header, destination, others)).then(|| reason.to_owned()));
    }
    if !of(&[NotAllowed, DenyRule, ProtocolNotAllowed, PortNotAllowed, NameExpired, TlsNameNotAllowed]) {
        return None;
    }
    let flow = destination.flow();
    let verdict = decide(rules, &flow).settle(|| true);
    let Verdict::Deny(why) = verdict else { return Some(None) };
    let listed = name.and_then(|name| name.parse::<DnsName>().ok()).is_some_and(|name| {
        policy.names.iter().any(|rule| {
            let may_bring = match AddressKind::of(destination.address) {
                AddressKind::Public => true,
                AddressKind::Private => rule.private(),
                _ => false,
            };
            rule.pattern().matches(&name)
                && rule.speaks_of(&flow)
                && may_bring
                && (rule.tls() || !of(&[TlsNameNotAllowed]))
        })
    });
    let as_before = match (why == DenyRule, listed) {
        // A rule for the name lets new flows to its address pass for a time, which was over.
        (false, true) if of(&[NameExpired]) => true,
        (false, true) => return Some(None),
        _ => of(&[TlsNameNotAllowed]),
    };
    Some(Some(if as_before { reason.to_owned() } else { why.name().to_owned() }))
}

/// Whether a rule lists a name that was asked for.
fn lists(policy: &Policy, name: &str) -> bool {
    let Ok(name) = name.parse::<DnsName>() else { return false };
    policy.names.iter().any(|rule| rule.pattern().matches(&name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{policy::file, report::tried::TriedLine};

    fn line(denials: u64, passed: bool) -> TriedLine {
        TriedLine { at: 1000, who: None, process: None, denials, passed }
    }

    /// What passed and what was refused.
    fn past() -> History {
        let allowed = ["api.example.org", "old.example.org"].map(str::to_owned).into();
        let mut history = History { allowed, ..History::default() };
        let lines = &mut history.lines;
        lines.add_question("refused.example.org".to_owned(), line(3, false));
        lines.add_question("audited.example.org".to_owned(), line(1, true));
        lines.add_question("both.example.org".to_owned(), line(1, true));
        lines.add_question("both.example.org".to_owned(), line(1, false));
        for (to, reason, name, passed) in [
            ("203.0.113.9:443", "not-allowed", None, false),
            ("203.0.113.10:443", "not-allowed", None, true),
            ("192.0.2.1:22", "port-not-allowed", Some("api.example.org"), false),
            ("10.0.0.1:443", "not-allowed", Some("db.corp.example"), false),
            ("192.0.2.2:443", "tls-name-not-allowed", Some("cdn.example.org"), false),
            ("192.0.2.4:443", "name-expired", Some("api.example.org"), false),
            ("0.0.0.0:3000", "bind-not-listed", None, false),
            ("127.0.0.1:4000", "bind-not-listed", None, false),
            ("192.0.2.3/icmp", "routing-header", None, false),
        ] {
            let to = to.parse().expect("a destination");
            lines.add_flow((to, reason.to_owned(), name.map(str::to_owned)), line(1, passed));
        }
        history
    }

    fn set(instance: &str) -> PolicySet {
        let instances = format!(
            r#""a": {{ "units": ["a.service"], {instance} }},
            "b": {{ "units": ["b.service"], "listen": [{{ "address": "127.0.0.1", "port": 4000 }}] }}"#
        );
        let file = format!(r#"{{ "version": 1, "instances": {{ {instances} }} }}"#);
        file::parse(Path::new("policy.json"), &file).expect("a policy file")
    }

    fn judged(instance: &str) -> (Vec<String>, Vec<String>, usize, usize) {
        let set = set(instance);
        let (name, policy) = set.instances.first_key_value().expect("an instance");
        let judge = Judge::of(name, policy, &set).expect("it fits");
        let Difference { would_refuse, would_let_pass, as_before, beyond_rules, .. } =
            compare(name, &judge, &past());
        let text = |judged: Judged| judged.what.trim_end_matches("/tcp").to_owned();
        let what = |judged: Vec<Judged>| judged.into_iter().map(text).collect();
        (what(would_refuse), what(would_let_pass), as_before, beyond_rules)
    }

    #[test]
    fn what_passed_and_would_not_and_what_was_refused_and_would_pass() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let same = r#""allow": ["api.example.org", "old.example.org", "audited.example.org", "203.0.113.10/32:443"],
            "loopback": "listed""#;
        assert_eq!(judged(same), (texts(&["both.example.org"]), vec![], 12, 1));
        let own = same.replace("listed", "own");
        assert_eq!(judged(&own).1, ["0.0.0.0:3000"], "for itself, but not where another one listens");
        let narrower = r#""allow": ["api.example.org"], "loopback": "listed""#;
        let refused = ["old.example.org", "audited.example.org", "both.example.org", "203.0.113.10:443"];
        assert_eq!(judged(narrower), (texts(&refused), vec![], 9, 1));
        let wider = r#""allow": ["*.example.org", "api.example.org:22,443", "203.0.113.0/24", "db.corp.example"],
            "listen": [{ "address": "0.0.0.0", "port": 3000 }], "loopback": "listed""#;
        let pass = [
            "both.example.org",
            "refused.example.org",
            "0.0.0.0:3000",
            "192.0.2.1:22",
            "192.0.2.2:443",
            "203.0.113.9:443",
        ];
        assert_eq!(judged(wider), (vec![], texts(&pass), 7, 1), "an address inside takes `private`");
        let private = r#""allow": ["*.example.org", "203.0.113.10/32", "db.corp.example/private"]"#;
        assert!(judged(private).1.contains(&"10.0.0.1:443".to_owned()));
        let denied = r#""allow": ["*.example.org", "203.0.113.0/24"],
            "deny": ["192.0.2.0/24", "203.0.113.10/32"], "loopback": "listed""#;
        let (refuse, pass, ..) = judged(denied);
        assert_eq!(refuse, ["203.0.113.10:443"]);
        assert_eq!(pass, ["both.example.org", "refused.example.org", "203.0.113.9:443"]);
        assert_eq!(judged(r#""mode": "audit""#).0, texts(&[]), "audit mode refuses nothing");
        assert_eq!(judged(r#""mode": "audit""#).1.len(), 9);
    }

    #[test]
    fn a_journal_that_has_nothing_is_said_to_whoever_reads_the_result() {
        let notes = |difference: Difference| difference.notes(&"@7");
        let instance = || "a".to_owned();
        let nothing = Difference { instance: instance(), left_out: 3, ..Difference::default() };
        let says = [
            "the journal has nothing of a since @7; --since looks further back",
            "3 denials since then are not in the journal, for its limits",
        ];
        assert_eq!(notes(nothing), says);
        let binds = Difference { instance: instance(), beyond_rules: 1, ..Difference::default() };
        assert_eq!(notes(binds), [""; 0], "it has one, which rules do not judge");
    }

    #[test]
    fn how_often_is_said_in_words() {
        let said = |attempts| {
            let (what, reason) = ("a.example".to_owned(), NAME_NOT_ALLOWED.to_owned());
            Judged { what, name: None, reason, attempts, tried: Tried::default() }.to_string()
        };
        assert_eq!(said(None), "a.example  name-not-allowed");
        assert_eq!(said(Some(1)), "a.example  name-not-allowed, once");
        assert_eq!(said(Some(2)), "a.example  name-not-allowed, 2 times");
    }

    #[test]
    fn an_address_whose_time_was_over_is_denied_for_that_as_long_as_a_rule_lists_its_name() {
        let why = |instance: &str| {
            let set = set(instance);
            let (name, policy) = set.instances.first_key_value().expect("an instance");
            let judge = Judge::of(name, policy, &set).expect("it fits");
            let at = "192.0.2.4:443".parse().expect("a destination");
            why_denied(&judge, at, "name-expired", Some("api.example.org")).expect("rules judge it")
        };
        assert_eq!(why(r#""allow": ["api.example.org"]"#).as_deref(), Some("name-expired"));
        assert_eq!(why(r#""allow": ["api.example.org:80"]"#).as_deref(), Some("not-allowed"));
        assert_eq!(why(r#""allow": ["192.0.2.0/24"]"#), None);
        let denied = r#""allow": ["api.example.org"], "deny": ["192.0.2.0/24"]"#;
        assert_eq!(why(denied).as_deref(), Some("deny-rule"));
    }
}
