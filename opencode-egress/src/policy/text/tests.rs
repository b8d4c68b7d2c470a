use proptest::prelude::*;

use super::*;
use crate::policy::compile::tests::names::any_rules;

proptest! {
    #[test]
    fn a_rule_is_what_its_text_says(rule in any_rules()) {
        prop_assert_eq!(rule.to_string().parse(), Ok(rule));
    }

    /// Whatever is typed, a rule or a line comes out, and the rule's own text means the same.
    #[test]
    fn any_text_is_a_rule_or_says_what_to_write(
        text in r"(\[|\*\.|https://|)([a-zé0-9.:*-]{0,12}|10\.0\.0\.0/8|2001:db8::/32)(\]|)(:[0-9,-]{0,9}|)(/[a-z0-9]{0,5}|)",
    ) {
        match text.parse::<AnyRule>() {
            Ok(rule) => prop_assert_eq!(rule.to_string().parse(), Ok(rule)),
            Err(Invalid(why)) => prop_assert!(!why.is_empty()),
        }
    }
}

fn shown(text: &str) -> String {
    let rule = text.parse::<AnyRule>().map(|rule| rule.to_string());
    rule.unwrap_or_else(|invalid| invalid.to_string())
}

#[test]
fn one_grammar_has_networks_and_names() {
    let check = |text: &str, expect: &str| assert_eq!(shown(text), expect);
    for same in [
        "10.10.0.0/16",
        "10.0.0.0/8/tcp",
        "10.0.0.0/8/icmp",
        "10.0.0.0/8:443",
        "203.0.113.0/24:443,8000-8100/tcp",
        "2001:db8::/32",
        "2001:db8::/32/udp",
        "::/0",
        "[2001:db8::/32]:443",
        "[2001:db8::/32]:443,8000-8100/udp",
        "api.example.org",
        "github.com:22,443",
        "*.example.net",
        "api.example.org/tcp",
        "api.example.org:443/udp",
        "api.example.org:443/any",
        "api.example.org/any",
        "git.corp.example:22/private",
        "git.corp.example/private",
        "ntp.example.org:123/udp/private",
        "api.example.org/notls",
        "api.example.org:8443/tls",
        "api.example.org:22,443/tls",
        "api.example.org/tcp/tls",
        "git.corp.example/notls/private",
        "git.corp.example:8443/tls/private",
    ] {
        check(same, same);
    }
    check("10.0.0.0/8/any", "10.0.0.0/8");
    check("[2001:db8::/32]", "2001:db8::/32");
    check("[2001:db8::/32]/udp", "2001:db8::/32/udp");
    check("[10.0.0.0/8]:443", "10.0.0.0/8:443");
    check("API.Example.org.:443/tcp", "api.example.org");
    check("api.example.org/tls", "api.example.org");
    check("api.example.org:22/notls", "api.example.org:22");
    for (wrong, why) in [
        ("api.example.org/any/tls", "`tls` is for TCP"),
        ("api.example.org:443/udp/tls", "`tls` is for TCP"),
        ("api.example.org/private/tls", "`/tls` at its end"),
        ("api.example.org/tls/notls", "`/notls` at its end"),
        ("10.0.0.0/8/tls", "`tls` is no protocol"),
    ] {
        assert!(shown(wrong).contains(why), "{}", shown(wrong));
    }
    check("github.com:443,22,23-25,24", "github.com:22-25,443");
    check("*.Bücher.example:8443", "*.xn--bcher-kva.example:8443");
}

#[test]
fn what_is_no_rule_says_what_to_write() {
    let check = |text: &str, expect: &str| {
        let shown = shown(text);
        assert!(shown.contains(expect), "{text}: {shown}");
    };
    check("10.10.0.1", "`10.10.0.1` has no prefix length; write `10.10.0.1/32` for this one address");
    check("10.10.0.1:443", "write `10.10.0.1/32:443`");
    check("10.10.0.1:443/tcp", "write `10.10.0.1/32:443/tcp`");
    check("10.10.0.1/tcp", "write `10.10.0.1/32/tcp`");
    check("2001:db8::1", "write `2001:db8::1/128`");
    check("[2001:db8::1]:443", "write `[2001:db8::1/128]:443`");
    check("[2001:db8::1]", "write `2001:db8::1/128`");
    check("10.10.0.1/16", "has host bits set; write `10.10.0.0/16`");
    check("10.0.0.0/33", "`10.0.0.0/33` is no network");
    check("10.010.0.0/16:443", "`10.010.0.0/16:443` is no network");
    check("300.1.1.1", "`300.1.1.1` is no network");
    check("2001:db8:::/32", "is no network");
    check("2001:db8::/32:443", "put it into brackets: `[2001:db8::/32]:443`");
    check("[2001:db8::/32:443", "has no `]`");
    check("[2001:db8::/32]443", "has `443` where only `:` and ports");
    check("[api.example.org]:443", "`api.example.org` is no network");
    check("10.0.0.0/8 tcp 443", "has ` tcp 443` where only `:` and ports, or `/` and a protocol, can be");
    check("10.0.0.0/8:443/icmp", "ICMP has no ports; leave them out");
    check("10.0.0.0/8/sctp", "`sctp` is no protocol; write `tcp`, `udp`, `icmp` or `any`");
    check("10.0.0.0/8/private", "`private` is no protocol");
    check("10.0.0.0/8:443/tcp/udp", "has `/udp` at its end, where nothing more can be");
    check("api.example.org:", "`` is no port");
    check("api.example.org:https", "`https` is no port");
    check("api.example.org:443-80", "write `80-443`");
    check(
        "api.example.org/v1",
        "`v1` is no protocol; write `tcp`, `udp`, `icmp` or `any`; a rule has no path",
    );
    check("api.example.org/icmp", "a rule for a name is for TCP and UDP");
    check("api.example.org:8/icmp", "a rule for a name is for TCP and UDP");
    check("https://api.example.org/v1", "is a URL; a rule has the name");
    check("https://api.example.org/v1", "write `api.example.org`");
    check("http://api.example.org", "write `api.example.org:80`");
    check("https://me:pw@api.example.org:8443/v1?q", "write `api.example.org:8443`");
    check("ssh://git@github.com/a/b", "write `github.com:22`");
    check("https://192.0.2.1/", "write `192.0.2.1/32:443`");
    check("https://[2001:db8::1]:8443/", "write `[2001:db8::1/128]:8443`");
    check("https://", "is a URL; write its name, as in `api.example.org`");
}

#[test]
fn a_name_is_not_denied() {
    let deny =
        |text: &str| text.parse::<Rule>().map_or_else(|invalid| invalid.to_string(), |rule| rule.to_string());
    assert_eq!(deny("10.0.0.0/8:25/tcp"), "10.0.0.0/8:25/tcp");
    let shown = deny("evil.example.org");
    assert!(shown.starts_with("`evil.example.org` is a name, and only networks can be denied"), "{shown}");
    assert!(deny("*.com").contains("registers below `com`"));
}
