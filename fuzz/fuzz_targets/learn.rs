//! What the daemon makes of a line of the resolver, which reads what agents write: of an answer, no address passes that no name may bring.

#![no_main]

use std::{net::IpAddr, sync::LazyLock};

use opencode_egress::{
    control::learned::FromResolver,
    daemon::names::weigh,
    policy::{
        PolicySet,
        compile::{CompiledPolicy, compile},
        file,
        name::DnsName,
        special::AddressKind,
    },
};

const POLICY: &str = r#"{"version": 1, "instances": {"a": {"units": ["a.service"],
    "allow": ["api.example.org", "*.example.net:22", "git.corp.example/private", "10.9.0.0/16:443"],
    "deny": ["192.0.2.0/24", "10.0.0.0/16"]}}}"#;

static COMPILED: LazyLock<CompiledPolicy> = LazyLock::new(|| {
    let PolicySet { instances, .. } = file::parse("policy.json".as_ref(), POLICY).expect("a policy file");
    compile(instances.values().next().expect("a policy")).expect("it compiles")
});

const OWN: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7))];

libfuzzer_sys::fuzz_target!(|line: &[u8]| {
    let Ok(FromResolver::Learn { name, addresses, .. }) = serde_json::from_slice(line) else { return };
    let Ok(name) = name.parse::<DnsName>() else { return };
    let rules = COMPILED.rules();
    let weighed = weigh(&name, &addresses, 100, &COMPILED.names, &rules, &OWN);
    let private = name.as_str() == "git.corp.example";
    for learned in &weighed.learned {
        assert!(weighed.told.contains(&learned.address), "learned and not told");
        let kind = AddressKind::of(learned.address);
        let may = kind == AddressKind::Public || private && kind == AddressKind::Private;
        assert!(may && !OWN.contains(&learned.address), "{} of {name}", learned.address);
        let denied =
            ["192.0.2.0/24", "10.0.0.0/16"].map(|net| net.parse::<ipnet::IpNet>().expect("a network"));
        assert!(!denied.iter().any(|net| net.contains(&learned.address)), "{} is denied", learned.address);
    }
    let listed = ["api.example.org", "git.corp.example"].contains(&name.as_str())
        || name.as_str().ends_with(".example.net");
    assert!(listed || weighed.told.is_empty(), "{name} is not listed");
});
