use super::*;

#[test]
fn networks_say_what_to_write_instead() {
    let check = |text: &str, expect: &str| {
        let result = text.parse::<Cidr>().map(|cidr| cidr.to_string());
        let shown = result.unwrap_or_else(|invalid| invalid.to_string());
        assert!(shown.contains(expect), "{text}: {shown}");
    };
    check("10.10.0.0/16", "10.10.0.0/16");
    check("10.10.0.1/16", "host bits set; write `10.10.0.0/16`");
    check("10.10.0.1", "write `10.10.0.1/32`");
    check("::ffff:192.0.2.0/120", "192.0.2.0/24");
    check("::/0", "::/0");
    check("example.com", "is no network");
    check("10.0.0.0/33", "is no network");
    check("10.010.0.0/16", "is no network");
}

#[test]
fn ports_say_what_to_write_instead() {
    let check = |text: &str, expect: &str| {
        let result = text.parse::<PortRange>().map(|range| range.to_string());
        let shown = result.unwrap_or_else(|invalid| invalid.to_string());
        assert!(shown.contains(expect), "{text}: {shown}");
    };
    check("443", "443");
    check("8000-8100", "8000-8100");
    check("8100-8000", "write `8000-8100`");
    check("0", "1 to 65535");
    check("65536", "1 to 65535");
    check("+80", "1 to 65535");
    check("https", "1 to 65535");
}

#[test]
fn names_are_safe_in_paths_and_identifiers() {
    assert!("my-project_2".parse::<InstanceName>().is_ok());
    for bad in ["", "a/b", "a b", "..", &"x".repeat(65)] {
        assert!(bad.parse::<InstanceName>().is_err(), "{bad}");
    }
    assert!("opencode-a.service".parse::<UnitName>().is_ok());
    for bad in ["opencode-a", ".service", "a/b.service", "opencode-a.socket"] {
        assert!(bad.parse::<UnitName>().is_err(), "{bad}");
    }
}
