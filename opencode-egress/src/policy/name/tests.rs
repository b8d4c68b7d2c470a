use super::*;

fn shown(text: &str) -> String {
    let pattern = text.parse::<NamePattern>().map(|pattern| pattern.to_string());
    pattern.unwrap_or_else(|invalid| invalid.to_string())
}

#[test]
fn a_name_is_taken_as_people_write_it() {
    let check = |text: &str, expect: &str| assert_eq!(shown(text), expect);
    check("api.example.org", "api.example.org");
    check("API.Example.ORG.", "api.example.org");
    check("_acme-challenge.example.org", "_acme-challenge.example.org");
    check("r3---sn-4g5e6n7s.example.org", "r3---sn-4g5e6n7s.example.org");
    check("bücher.example", "xn--bcher-kva.example");
    check("BÜCHER。example", "xn--bcher-kva.example");
    check("xn--bcher-kva.example", "xn--bcher-kva.example");
    check("*.Bücher.example.", "*.xn--bcher-kva.example");
    check("1and1.com", "1and1.com");
    check("3.pool.example", "3.pool.example");
    check("*.example.co.uk", "*.example.co.uk");
    check("*.city.kawasaki.jp", "*.city.kawasaki.jp");
    check("*.example.com.np", "*.example.com.np");
    // A network's own, below which nobody registers names.
    check("*.internal", "*.internal");
    let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
    check(&longest, &longest);
}

#[test]
fn what_is_no_name_says_what_to_write() {
    let check = |text: &str, expect: &str| {
        let shown = shown(text);
        assert!(shown.contains(expect), "{text}: {shown}");
    };
    check("", "there is nothing in it; write one as in `api.example.org`");
    check(".", "there is nothing in it");
    check("*", "`*` is every name; list names");
    check("*.", "there is nothing in it");
    check("example..org", "there is nothing between two of its dots");
    check("example.org..", "there is nothing between two of its dots");
    check(".example.org", "write `*.example.org` for every name below `example.org`");
    check(&format!("{}.org", "a".repeat(64)), "has 64 bytes, and 63 is the most");
    check(&["abcdefghi"; 26].join("."), "it has 259 bytes, and 253 is the most");
    check("api example.org", "it has a ` `, where only letters, digits, `-`, `_` and dots can be");
    check("git@github.com", "it has a `@`");
    check("api.example.org\u{7f}", "it has a `\\u{7f}`");
    check("xn--a.example", "IDNA has no form of it for the DNS");
    check("192.0.2.1", "it is an address; write `192.0.2.1/32`");
    check("192.0.2.256", "it ends with a number, as an address does, and is none");
    check("0x7f.1", "it ends with a number");
    check("example.0x7f", "it ends with a number");
    check("localhost", "is this machine, which no name may bring; write `127.0.0.1/32:PORT`");
    check("a.localhost", "is this machine");
    check("gitserver", "is no full name: it has no dot");
    check("api.*.example.org", "`*` can only be the whole first label");
    check("api.*.example.org", "write `*.example.org`");
    check("*api.example.org", "write `*.example.org`");
    check("*.*.example.org", "write `*.example.org`");
    check("example.*", "list each of the names, or write a wildcard as in `*.example.org`");
    check("*.com", "`*.com` is every name that anybody registers below `com`");
    check("*.com.", "as in `*.example.com`");
    check("*.CO.UK", "registers below `co.uk`");
    check("*.np", "registers below `com.np`");
    check("*.np", "as in `*.example.com.np`");
    check("*.compute.amazonaws.com", "as in `*.example.com.compute.amazonaws.com`");
    check("*.рф", "registers below `xn--p1ai`");
    check("*.github.io", "registers below `github.io`");
    check("*.anything.ck", "registers below `anything.ck`");
}

#[test]
fn a_wildcard_is_every_name_below_and_not_the_name_itself() {
    let matches = |pattern: &str, name: &str| {
        let pattern: NamePattern = pattern.parse().expect("a pattern");
        pattern.matches(&name.parse().expect("a name"))
    };
    assert!(matches("api.example.org", "API.example.org."));
    assert!(!matches("api.example.org", "a.api.example.org"));
    assert!(matches("*.example.org", "api.example.org") && matches("*.example.org", "a.b.example.org"));
    assert!(!matches("*.example.org", "example.org") && !matches("*.example.org", "anexample.org"));
    assert!(!matches("*.example.org", "example.org.example.net"));
}

#[test]
fn the_registrable_name_is_right_below_a_public_suffix() {
    let registrable =
        |name: &str| name.parse::<DnsName>().expect("a name").registrable().map(|name| name.to_string());
    assert_eq!(registrable("a.b.example.co.uk").as_deref(), Some("example.co.uk"));
    assert_eq!(registrable("example.co.uk").as_deref(), Some("example.co.uk"));
    assert_eq!(registrable("co.uk"), None);
    assert_eq!(registrable("someone.github.io").as_deref(), Some("someone.github.io"));
}

/// It is pinned with learned addresses, and another number would cut what is open at an upgrade.
#[test]
fn a_rules_number_does_not_change() {
    let id = |text: &str| match text.parse() {
        Ok(crate::policy::AnyRule::Name(rule)) => rule.id().0,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(id("api.example.org"), 0x90ce_7d3b_2348_f613);
    assert_eq!(id("api.example.org"), id("API.example.org:443/tcp"));
    assert_eq!(id("github.com:22,443"), id("github.com:443,22"));
    assert_ne!(id("github.com:22,443"), id("github.com:22"));
    assert_ne!(id("api.example.org"), id("api.example.org/private"));
}
