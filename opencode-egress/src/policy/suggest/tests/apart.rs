//! What is set apart, and what becomes a preset.

use super::*;
use crate::policy::suggest::tried::tests::program;

/// What was tried at these seconds, by the programs of such a `via=`.
fn tried(lines: &[(u64, &str)]) -> Tried {
    let mut tried = Tried::default();
    lines.iter().for_each(|(at, via)| tried.add(*at, program(via)));
    tried
}

fn question(name: &str, tried: Tried) -> DeniedName {
    DeniedName { name: name.to_owned(), attempts: 2, tried }
}

fn flow(to: &str, name: Option<&str>, tried: Tried) -> DeniedDestination {
    let name = name.map(str::to_owned);
    DeniedDestination { name, tried, ..denied(&destination(to).flow(), DropReason::NotAllowed) }
}

fn texts(rules: &[SuggestedRule]) -> Vec<String> {
    rules.iter().map(|suggested| suggested.rule.to_string()).collect()
}

const CURL: &str = "curl,bash,opencode";

#[test]
fn what_a_program_of_a_shell_asked_for_once_is_set_apart() {
    // Who asked is known of flows alone.
    let names = [
        question("once.example.org", tried(&[(1000, "")])),
        question("often.example.org", tried(&[(1000, ""), (5000, "")])),
        question("unknown.example.org", tried(&[(1000, "")])),
        question("server.example.org", tried(&[(1000, "")])),
    ];
    let flows = [
        flow("192.0.2.1:443", Some("once.example.org"), tried(&[(1001, CURL)])),
        flow("192.0.2.2:443", Some("often.example.org"), tried(&[(1001, CURL)])),
        flow("192.0.2.3:443", Some("server.example.org"), tried(&[(1001, "opencode")])),
        // A neighbour of it is not joined with what is apart.
        flow("198.51.100.8:80", None, tried(&[(1000, CURL)])),
        flow("198.51.100.9:80", None, tried(&[(1000, "opencode")])),
    ];
    let suggestion = suggest(&Policy::default(), &flows, &names, WIDEST).expect("it fits");
    let needed = ["198.51.100.9/32:80/tcp", "often.example.org", "server.example.org", "unknown.example.org"];
    assert_eq!(texts(&suggestion.rules), needed);
    assert_eq!(texts(&suggestion.once), ["198.51.100.8/32:80/tcp", "once.example.org"]);
    assert_eq!(suggestion.once[1].denials.attempts, 3);
    assert_eq!(suggestion.once[1].denials.tried.programs().as_deref(), Some("curl of bash"));
    // What the server needs lets it pass, too.
    let flows = [flow("192.0.2.3:443", Some("server.example.org"), tried(&[(1001, "opencode")]))];
    let both = [flows[0].clone(), flow("192.0.2.3:8080", Some("server.example.org"), tried(&[(1001, CURL)]))];
    let suggestion = suggest(&Policy::default(), &both, &[], WIDEST).expect("it fits");
    assert_eq!(
        texts(&suggestion.rules),
        ["server.example.org:443,8080"],
        "all that is known of a name counts"
    );
    assert_eq!(texts(&suggestion.once), [""; 0]);
}

/// Each denial is told in one place: the policy file does not let it pass yet.
#[test]
fn what_is_set_apart_counts_where_a_suggested_rule_lets_it_pass() {
    let once = || tried(&[(1000, CURL)]);
    let steady = || tried(&[(1000, "opencode")]);
    let flows = [
        flow("198.51.100.8:80", None, steady()),
        flow("198.51.100.11:80", None, steady()),
        flow("198.51.100.9:80", None, once()),
        flow("198.51.100.9:81", None, once()),
        flow("192.0.2.1:8443", Some("a.example.net"), steady()),
        flow("192.0.2.2:8443", Some("b.example.net"), steady()),
        flow("192.0.2.3:8443", Some("c.example.net"), once()),
        flow("192.0.2.3:22", Some("c.example.net"), once()),
        flow("192.0.2.4:8443", Some("d.example.net"), once()),
    ];
    let names = ["c.example.net", "d.example.net"].map(|name| question(name, tried(&[(1000, "")])));
    let widest = Widest { wildcards: true, ..WIDEST };
    let suggestion = suggest(&Policy::default(), &flows, &names, widest).expect("it fits");
    let counted = |rules: &[SuggestedRule]| -> Vec<_> {
        rules.iter().map(|suggested| (suggested.rule.to_string(), suggested.denials.attempts)).collect()
    };
    let needed = [("198.51.100.8/30:80/tcp".to_owned(), 3), ("*.example.net:8443".to_owned(), 6)];
    assert_eq!(counted(&suggestion.rules), needed);
    assert_eq!(suggestion.rules[1].denials.tried.programs().as_deref(), Some("curl of bash, opencode"));
    let apart = [("198.51.100.9/32:81/tcp".to_owned(), 1), ("c.example.net:22".to_owned(), 3)];
    assert_eq!(counted(&suggestion.once), apart);
    assert_eq!(suggestion.allowed_by_now, 0);

    // A preset lets it pass, which the server needs.
    let names = [question("index.crates.io", steady()), question("static.crates.io", once())];
    let Suggestion { presets, once, .. } = suggest(&Policy::default(), &[], &names, WIDEST).expect("it fits");
    assert_eq!(texts(&presets[0].instead_of), ["index.crates.io", "static.crates.io"]);
    assert_eq!((presets[0].denials().attempts, presets[0].unasked.len(), once.len()), (4, 0, 0));
}

#[test]
fn what_no_rule_lets_pass_is_told_also_where_it_is_set_apart() {
    let hello = DeniedDestination {
        reason: DropReason::TlsNameNotAllowed.name().to_owned(),
        ..flow("192.0.2.1:443", None, tried(&[(1000, CURL)]))
    };
    let suggestion = suggest(&Policy::default(), &[hello], &[], WIDEST).expect("it fits");
    assert_eq!(suggestion.beyond_rules, [("tls-name-not-allowed".to_owned(), 1)].into());
}

#[test]
fn presets_stand_for_the_rules_that_they_have() {
    let presets = |names: &[&str], allow: &[&str]| {
        let mut policy = Policy::default();
        allow.iter().for_each(|rule| policy.allow(rule.parse().expect("a rule")));
        let names: Vec<_> = names.iter().map(|name| question(name, Tried::default())).collect();
        let Suggestion { presets, rules, .. } = suggest(&policy, &[], &names, WIDEST).expect("it fits");
        let shown = presets.iter().map(|suggested| {
            let unasked = suggested.unasked.iter().map(|rule| format!(" +{rule}")).collect::<String>();
            format!("{}={}{unasked}", suggested.preset.name, texts(&suggested.instead_of).join(","))
        });
        (shown.collect::<Vec<_>>(), texts(&rules))
    };
    let shown = |presets: &[&str], rules: &[&str]| {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        (texts(presets), texts(rules))
    };
    assert_eq!(
        presets(&["registry.npmjs.org", "a.example.org", "files.pythonhosted.org", "pypi.org"], &[]),
        shown(&["pypi=files.pythonhosted.org,pypi.org", "npm=registry.npmjs.org"], &["a.example.org"])
    );
    // Half of it was asked for; of GitHub's eight names, two.
    assert_eq!(
        presets(&["index.crates.io", "github.com", "api.github.com"], &[]),
        shown(&["crates=index.crates.io +static.crates.io"], &["api.github.com", "github.com"])
    );
    // What is on the list counts, and is not suggested.
    assert_eq!(
        presets(&["static.crates.io"], &["index.crates.io"]),
        shown(&["crates=static.crates.io"], &[])
    );
    assert_eq!(presets(&["index.crates.io"], &["*.crates.io"]), shown(&[], &[]));
    assert_eq!(presets(&[], &["registry.npmjs.org"]), shown(&[], &[]), "nothing is missing");
}

/// The preset has the name at 443 alone.
#[test]
fn a_preset_does_not_stand_for_a_port_that_it_lacks() {
    let flows = [22, 443]
        .map(|port| flow(&format!("192.0.2.1:{port}"), Some("registry.npmjs.org"), Tried::default()));
    let suggestion = suggest(&Policy::default(), &flows, &[], WIDEST).expect("it fits");
    assert_eq!(texts(&suggestion.rules), ["registry.npmjs.org:22,443"]);
    assert!(suggestion.presets.is_empty());
}
