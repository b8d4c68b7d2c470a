use super::*;

const GOOD: &str = r#"{ "version": 1,
  "log": { "interval_secs": 10, "burst": 20, "per_sec": 5 },
  "instances": {
    "my-project": {
      "units": ["opencode-my-project.service", "opencode-my-project-setup.service"],
      "mode": "enforce",
      "allow": ["10.10.0.0/16", { "cidr": "203.0.113.0/24", "protocol": "tcp", "ports": ["443", "8000-8100"] }],
      "deny": ["10.10.9.0/24"],
      "listen": [{ "address": "127.0.0.1", "port": 8787, "open": false }] } } }"#;

fn shown(text: &str) -> String {
    match parse(Path::new("p.json"), text) {
        Ok(set) => format!("{set:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_documented_file_is_taken() {
    let set = parse(Path::new("p.json"), GOOD).expect("a good file");
    let policy = &set.instances[&"my-project".parse().expect("a name")];
    assert_eq!(policy.units.len(), 2);
    assert_eq!(policy.allow[0].to_string(), "10.10.0.0/16");
    assert_eq!(policy.allow[1].to_string(), "203.0.113.0/24:443,8000-8100/tcp");
    assert_eq!(policy.listen[0].to_string(), "127.0.0.1:8787");
}

/// Each case replaces something in the good file; the message must begin with its place.
#[test]
fn errors_have_a_place_and_a_remedy() {
    let check = |from: &str, to: &str, expect: &str| {
        assert!(GOOD.contains(from), "{from}");
        let text = shown(&GOOD.replacen(from, to, 1));
        assert!(text.starts_with(expect), "{to}: {text}");
    };
    check(
        "10.10.0.0/16",
        "10.10.0.1/16",
        "p.json:7:17: `10.10.0.1/16` has host bits set; write `10.10.0.0/16`",
    );
    check("203.0.113.0/24", "203.0.113.0/44", "p.json:7:43: `203.0.113.0/44` is no network");
    check("\"443\"", "\"70000\"", "p.json:7:90: `70000` is no port");
    check("\"443\"", "70000", "p.json:7:94: 70000 is no port; write one from 1 to 65535");
    check("\"443\"", "0", "p.json:7:90: 0 is no port; write one from 1 to 65535");
    check("\"443\"", "-1", "p.json:7:91: -1 is no port; write one from 1 to 65535");
    check(
        "\"443\"",
        "443.0",
        "p.json:7:94: invalid type: floating point `443.0`, expected a port such as 443",
    );
    check("\"443\"", "[443]", "p.json:7:90: invalid type: array, expected a port such as 443");
    check("\"tcp\"", "\"icmp\"", "p.json:7:91: ICMP has no ports");
    check("\"tcp\"", "\"sctp\"", "p.json:7:73: `sctp` is no protocol; write `tcp`, `udp`, `icmp` or `any`");
    check("\"deny\"", "\"denny\"", "p.json:8:13: unknown field `denny`, expected one of");
    check("8787", "0", "p.json:9:52: 0 is no port");
    let resolvers = "among the ports 22528 to 24575 of instances' resolvers, so that no other instance could reach a listener there; choose another";
    for port in [22528, 24575] {
        check("8787", &port.to_string(), &format!("p.json:9:56: {port} is {resolvers}"));
    }
    for port in [22527, 24576] {
        check("8787", &port.to_string(), "PolicySet");
    }
    check("\"127.0.0.1\"", "\"localhost\"", "p.json:9:31: `localhost` is no address");
    check("\"enforce\"", "\"off\"", "p.json:6:15: `off` is no mode; write `enforce` or `audit`");
    check("my-project\":", "my project\":", "p.json:4:5: `my project` is no instance name");
    check("-setup.service", ".service", "p.json:5:48: unit `opencode-my-project.service` is listed already");
    check("\"burst\": 20", "\"burst\": -1", "p.json:2:43: -1 is out of range");
    check("\"version\": 1", "\"version\": 2", "p.json:1:14: version 2 is not known");
    check("10.10.9.0", "10.10.9\\u002e1", "p.json:4:5: `10.10.9.1/24` has host bits set");
    check("8787", "18446744073709551615", "p.json:9:71: 18446744073709551615 is no port");
    check("] } } }", "] } }", "p.json:9:77: EOF while parsing an object");
}

/// As the NixOS option takes them.
#[test]
fn ports_are_numbers_or_text() {
    let with = |ports: &str| {
        let text = GOOD.replacen("[\"443\", \"8000-8100\"]", ports, 1);
        let set = parse(Path::new("p.json"), &text).expect("a good file");
        set.instances.values().next().expect("an instance").allow[1].to_string()
    };
    assert_eq!(with("[443]"), "203.0.113.0/24:443/tcp");
    assert_eq!(with("[443, \"8000-8100\", 22, \"53\"]"), "203.0.113.0/24:443,8000-8100,22,53/tcp");
    assert_eq!(with("[1, 65535]"), "203.0.113.0/24:1,65535/tcp");
    let icmp = GOOD.replacen("\"tcp\", \"ports\": [\"443\"", "\"icmp\", \"ports\": [443", 1);
    assert!(shown(&icmp).starts_with("p.json:7:43: ICMP has no ports"), "{}", shown(&icmp));
}

/// There is always one, so that no instance takes all ports of the host.
#[test]
fn the_limit_of_sockets_is_a_number() {
    let with = |limits: &str| GOOD.replacen("\"mode\"", &format!("\"limits\": {limits},\n\"mode\""), 1);
    let sockets = |text: &str| {
        let set = parse(Path::new("p.json"), text).expect("a good file");
        set.instances.values().next().expect("an instance").max_sockets
    };
    assert_eq!((sockets(GOOD), sockets(&with("{}"))), (4096, 4096));
    assert_eq!(sockets(&with(r#"{ "sockets": 1 }"#)), 1);
    assert_eq!(sockets(&with(r#"{ "sockets": 1000000 }"#)), 1_000_000);
    for (bad, message) in [
        ("0", "0 is out of range; write one from 1 to 1000000"),
        ("-1", "-1 is out of range; write one from 1 to 1000000"),
        ("1000001", "1000001 is out of range; write one from 1 to 1000000"),
        ("null", "invalid type: null, expected a number from 1 to 1000000"),
        (r#""64""#, r#"invalid type: string "64", expected a number from 1 to 1000000"#),
    ] {
        let text = shown(&with(&format!(r#"{{ "sockets": {bad} }}"#)));
        assert!(text.starts_with("p.json:6:") && text.ends_with(message), "{bad}: {text}");
    }
    let text = shown(&with(r#"{ "socket": 1 }"#));
    assert!(text.contains("unknown field `socket`, expected `sockets`"), "{text}");
}

#[test]
fn the_error_of_denied_calls_is_one_of_four() {
    let with = |errno: &str| GOOD.replacen("\"mode\"", &format!("\"errno\": {errno},\n\"mode\""), 1);
    let errno = |text: &str| {
        let set = parse(Path::new("p.json"), text).expect("a good file");
        set.instances.values().next().expect("an instance").errno.name()
    };
    assert_eq!(errno(GOOD), "EPERM");
    for name in ["EPERM", "ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH"] {
        assert_eq!(errno(&with(&format!("{name:?}"))), name);
    }
    for bad in ["EACCES", "econnrefused", "111", ""] {
        let text = shown(&with(&format!("{bad:?}")));
        let message = format!(
            "`{bad}` is no error that a denied call can have; write `EPERM`, `ECONNREFUSED`, `EHOSTUNREACH` or `ENETUNREACH`"
        );
        assert!(text.starts_with("p.json:6:") && text.contains(&message), "{bad}: {text}");
    }
}

/// One instance's clients would find themselves at the other's server.
#[test]
fn listeners_of_two_instances_do_not_overlap() {
    let with = |a: &str, b: &str| {
        shown(&format!(
            r#"{{"version":1,"instances":{{
"a":{{"units":["a.service"],"listen":[{a}]}},
"b":{{"units":["b.service"],"listen":[{b}]}}}}}}"#
        ))
    };
    let at = |address: &str, port: u16| format!(r#"{{"address":"{address}","port":{port}}}"#);
    let check = |a: &str, b: &str, overlap: bool| {
        let text = with(&at(a, 8787), &at(b, 8787));
        assert_eq!(text.contains("overlaps with"), overlap, "{a} and {b}: {text}");
    };
    check("0.0.0.0", "127.0.0.1", true);
    check("127.0.0.1", "0.0.0.0", true);
    check("::", "127.0.0.1", true);
    check("::ffff:127.0.0.1", "127.0.0.1", true);
    check("192.0.2.1", "192.0.2.1", true);
    check("127.0.0.1", "127.0.0.2", false);
    check("0.0.0.0", "::1", false);
    let text = with(&at("0.0.0.0", 8787), &at("127.0.0.1", 8787));
    let expect = "p.json:3:49: listener 127.0.0.1:8787 of instance `b` overlaps with 0.0.0.0:8787 of instance `a`; give one of them another port";
    assert_eq!(text, expect);
    // Another port, or the same instance's.
    assert!(!with(&at("0.0.0.0", 8787), &at("127.0.0.1", 8788)).contains("overlaps"));
    let own = format!("{},{}", at("127.0.0.1", 8787), at("0.0.0.0", 8787));
    assert!(!with(&own, &at("127.0.0.1", 8788)).contains("overlaps"));
}

/// systemd writes a `-` in a name that is not a separator as `\x2d`, and JSON a `\` as `\\`.
#[test]
fn a_units_name_may_have_systemds_escapes() {
    let text = GOOD.replacen("opencode-my-project.service", r"opencode-my\\x2dproject.service", 1);
    let set = parse(Path::new("p.json"), &text).expect("a good file");
    let policy = &set.instances[&"my-project".parse().expect("a name")];
    assert_eq!(policy.units[0].as_str(), r"opencode-my\x2dproject.service");
    let single = GOOD.replacen("opencode-my-project.service", r"opencode-my\x2dproject.service", 1);
    let said = shown(&single);
    assert!(
        said.starts_with("p.json:5:") && said.ends_with(r"JSON has `\\` for each `\` of a name"),
        "{said}"
    );
}

#[test]
fn an_instance_cannot_be_there_twice() {
    let twice = r#"{"version":1,"instances":{"a":{"units":["a.service"]},
"a":{"units":["b.service"]}}}"#;
    assert!(shown(twice).starts_with("p.json:2:1: instance `a` is there twice"), "{}", shown(twice));
    let none = r#"{"version":1,"instances":{"a":{"units":[]}}}"#;
    assert!(shown(none).starts_with("p.json:1:27: instance `a` has no units"), "{}", shown(none));
}

#[test]
fn a_message_is_one_line_with_a_place_in_the_file() {
    assert!(shown("{\n").starts_with("p.json:2:1: EOF"), "{}", shown("{\n"));
    let escapes = shown(r#"{"version":1,"a\u001b[2K\nb":1}"#);
    assert!(escapes.contains(r"unknown field `a\u{1b}[2K\nb`"), "{escapes}");
}

/// A file with these rules in `allow` and in `deny`, and something at the top.
fn with_rules(allow: &str, deny: &str, top: &str) -> String {
    format!(
        r#"{{"version":1,{top}"instances":{{"a":{{"units":["a.service"],
"allow":[{allow}],
"deny":[{deny}]}}}}}}"#
    )
}

#[test]
fn rules_for_names_and_presets_are_taken() {
    let names = |allow: &str| {
        let set = parse(Path::new("p.json"), &with_rules(allow, "", "")).expect("a good file");
        let policy = set.instances.values().next().expect("an instance");
        policy.names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(r#""api.example.org", {"name": "API.example.org."}"#), ["api.example.org"]);
    assert_eq!(names(r#"{"name": "*.example.net", "ports": ["22", 443]}"#), ["*.example.net:22,443"]);
    assert_eq!(names(r#"{"name": "a.example.org", "protocol": "udp"}"#), ["a.example.org/udp"]);
    assert_eq!(
        names(r#"{"name": "a.example.org", "protocol": "any", "ports": [443]}"#),
        ["a.example.org:443/any"]
    );
    assert_eq!(names(r#"{"name": "git.corp.example", "private": true}"#), ["git.corp.example/private"]);
    assert_eq!(names(r#"{"name": "a.example.org", "private": false}"#), ["a.example.org"]);
    assert_eq!(
        names(r#"{"preset": "npm"}, "registry.npmjs.org", "10.0.0.0/8:22/tcp""#),
        ["registry.npmjs.org"]
    );
}

#[test]
fn rules_for_names_have_a_place_and_a_remedy() {
    let check = |allow: &str, expect: &str| {
        let text = shown(&with_rules(allow, "", ""));
        assert!(text.starts_with(&format!("p.json:2:{expect}")), "{allow}: {text}");
    };
    check(r#""*.com""#, "10: `*.com` is every name that anybody registers below `com`");
    check(r#"{"name": "*.co.uk"}"#, "19: `*.co.uk` is every name");
    check(r#"{"name": "192.0.2.1"}"#, "19: `192.0.2.1` has no prefix length; write `192.0.2.1/32`");
    check(
        r#"{"name": "192.0.2.0/24"}"#,
        "19: `192.0.2.0/24` is a network; write `\"cidr\": \"192.0.2.0/24\"`",
    );
    check(
        r#"{"name": "example.org:443"}"#,
        "19: `example.org:443` has more than a name; write `\"name\": \"example.org\"`, and the rest as `ports` and `protocol`",
    );
    check(r#"{"name": "https://api.example.org/v1"}"#, "19: `https://api.example.org/v1` is a URL");
    check(r#"{"name": "api.*.org"}"#, "19: `api.*.org` is no name: `*` can only be");
    check(r#"{"name": "a.example.org", "protocol": "icmp"}"#, "48: a rule for a name is for TCP and UDP");
    check(r#"{"name": "a.example.org", "ports": [0]}"#, "46: 0 is no port");
    check(r#"{"cidr": "10.0.0.0/8", "private": true}"#, "19: `private` is for rules with a `name`");
    check(
        r#"{"cidr": "10.0.0.0/8", "name": "a.example.org"}"#,
        "56: a rule has one of `cidr`, `name` and `preset`",
    );
    check(r#"{"ports": [443]}"#, "25: a rule needs a `cidr`, a `name` or a `preset`");
    check(r#"{"nmae": "a.example.org"}"#, "16: unknown field `nmae`, expected one of `cidr`, `name`");
    check(r#"{"preset": "nmp"}"#, "21: `nmp` is no preset; there are: anthropic, ");
    check(r#"{"preset": "npm", "ports": [80]}"#, "21: a preset has protocols and ports of its own");
}

#[test]
fn names_are_not_denied() {
    for deny in [r#""evil.example.org""#, r#"{"name": "evil.example.org"}"#] {
        let text = shown(&with_rules("", deny, ""));
        let at = if deny.starts_with('{') { 18 } else { 9 };
        let expect = format!("p.json:3:{at}: `evil.example.org` is a name, and only networks can be denied");
        assert!(text.starts_with(&expect), "{text}");
    }
    let text = shown(&with_rules("", r#"{"preset": "npm"}"#, ""));
    assert!(text.starts_with("p.json:3:20: `registry.npmjs.org` is a name, and only"), "{text}");
}

#[test]
fn upstream_servers_are_addresses() {
    let with = |upstream: &str| with_rules("", "", &format!(r#""resolver":{{"upstream":[{upstream}]}},"#));
    let set =
        parse(Path::new("p.json"), &with(r#""192.0.2.53", "[2001:db8::53]:5353""#)).expect("a good file");
    let shown_upstream: Vec<_> = set.resolver.upstream.iter().map(ToString::to_string).collect();
    assert_eq!(shown_upstream, ["192.0.2.53:53", "[2001:db8::53]:5353"]);
    assert_eq!(parse(Path::new("p.json"), &with("")).expect("a good file").resolver, Resolver::default());
    let text = shown(&with(r#""dns.example.org""#));
    assert!(text.starts_with("p.json:1:38: `dns.example.org` is no server's address"), "{text}");
    let many = [r#""192.0.2.53""#; 9].join(",");
    let text = shown(&with(&many));
    assert!(text.contains("`192.0.2.53` is one upstream server too many; at most 8"), "{text}");
}

#[test]
fn what_is_of_another_kind_is_told_how_to_write_it() {
    let check = |top: &str, line: usize, expect: &str| {
        let text = shown(top);
        let (place, message) = text.split_once(": ").unwrap_or_default();
        assert!(place.starts_with(&format!("p.json:{line}:")), "{top}: {text}");
        let told =
            message.starts_with("invalid type: ") && message.ends_with(&format!(", expected {expect}"));
        assert!(told, "{top}: {text}");
    };
    let file = r#"an object, as in {"version": 1, "instances": {}}"#;
    check("[]", 1, file);
    check("[1, {}, {}, {}]", 1, file);
    check("null", 1, file);
    let version = r#"the number 1; write `"version": 1`"#;
    check("{\"version\":\n\"1\"}", 2, version);
    check("{\"version\":\n1.0}", 2, version);

    let top = |rest: &str| format!("{{\"version\":1,\n{rest},\n\"instances\":{{}}}}");
    check(&top(r#""log":[]"#), 2, r#"an object, as in {"interval_secs": 10, "burst": 20, "per_sec": 5}"#);
    check(
        &top(r#""log":[1,2,3]"#),
        2,
        r#"an object, as in {"interval_secs": 10, "burst": 20, "per_sec": 5}"#,
    );
    let resolver = r#"an object, as in {"upstream": ["192.0.2.53"]}"#;
    check(&top(r#""resolver":"192.0.2.53""#), 2, resolver);
    check(&top(r#""resolver":[["192.0.2.53"],null]"#), 2, resolver);
    check(&top(r#""resolver":{"upstream":"192.0.2.53"}"#), 2, r#"a list of servers, as in ["192.0.2.53"]"#);
    check(&top(r#""resolver":{"mark":"25"}"#), 2, "one bit of a mark, as in 33554432");
    let instances = r#"an object, as in {"my-project": {"units": ["opencode-my-project.service"]}}"#;
    check("{\"version\":1,\"instances\":\n[]}", 2, instances);

    let instance = r#"an instance, as in {"units": ["opencode-a.service"], "allow": []}"#;
    for form in ["null", "[]", r#"[["a.service"],"audit"]"#, "5"] {
        let file = format!("{{\"version\":1,\"instances\":{{\"a\":\n{form}}}}}");
        check(&file, 2, instance);
    }

    let within = |rest: &str| {
        format!("{{\"version\":1,\"instances\":{{\"a\":{{\n{rest},\n\"units\":[\"a.service\"]}}}}}}")
    };
    check(&within(r#""units":"a.service""#), 2, r#"a list of units, as in ["opencode-a.service"]"#);
    let listeners = r#"a list of listeners, as in [{"address": "127.0.0.1", "port": 8787}]"#;
    check(&within(r#""listen":{"address":"127.0.0.1","port":80}"#), 2, listeners);
    check(&within(r#""listen":null"#), 2, listeners);
    let listener = r#"a listener, as in {"address": "127.0.0.1", "port": 8787}"#;
    check(&within(r#""listen":["127.0.0.1:80"]"#), 2, listener);
    check(&within(r#""listen":[["127.0.0.1",80]]"#), 2, listener);
    let port = r#""listen":[{"address":"127.0.0.1","port":"8787"}]"#;
    check(&within(port), 2, "a port, as in 8787");
    check(&within(r#""limits":5"#), 2, r#"an object, as in {"sockets": 4096}"#);
    check(&within(r#""limits":[5]"#), 2, r#"an object, as in {"sockets": 4096}"#);
    let rules = r#"a list of rules, as in ["10.10.0.0/16", "api.example.org"]"#;
    check(&within(r#""allow":"npm""#), 2, rules);
    check(&within(r#""deny":{}"#), 2, rules);
    let ports = r#""allow":[{"cidr":"10.0.0.0/8","ports":443}]"#;
    check(&within(ports), 2, r#"a list of ports, as in [443, "8000-8100"]"#);
}

#[test]
fn a_file_of_nothing_is_told_what_to_write() {
    let empty = r#"p.json:1:1: the file is empty; write at least `{"version": 1, "instances": {}}`"#;
    for nothing in ["", " \n", "\t\r\n\n"] {
        assert_eq!(shown(nothing), empty, "{nothing:?}");
    }
    let least = empty.split('`').nth(1).expect("what to write");
    assert!(shown(least).starts_with("PolicySet"), "{}", shown(least));
    let mark = "p.json:1:1: the file begins with a byte order mark; save it without one";
    assert_eq!(shown(&format!("\u{feff}{GOOD}")), mark);
    assert_eq!(shown("\u{feff}"), mark);
}

#[test]
fn what_is_no_text_file_is_told_as_what_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let told = |path: &Path| load(path).expect_err("no policy file").to_string();
    assert_eq!(told(at), format!("{} is a directory; name the policy file in it", at.display()));
    let file = at.join("p.json");
    assert_eq!(
        told(&file),
        format!("cannot read the policy file {}; check that it exists and is readable", file.display())
    );
    // Latin-1, and UTF-16 with its mark.
    for bytes in [b"{\"version\": 1, \"\xe9\": 1}".as_slice(), b"\xff\xfe{\0"] {
        std::fs::write(&file, bytes).expect("a file");
        assert_eq!(told(&file), format!("{} is not UTF-8 text; save it as that", file.display()));
    }
}
